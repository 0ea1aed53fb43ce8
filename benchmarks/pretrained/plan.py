"""Which runs, in which order: what decides first, so that it may be stopped at any point."""

import dataclasses as dc
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign import plan as campaign
from benchmarks.convergence.optimizers import code
from benchmarks.convergence.plan import badness
from benchmarks.convergence.runs import Run
from benchmarks.convergence.store import Store
from benchmarks.convergence.task import digest

from .arms import ARMS, FINALISTS, RATE_FREE, RATES, RULED, entry_of, optimizer_of
from .worlds import OTHER_TEXT, RANKS, TEXT, WORLDS, alphas, name_of

ANCHOR_RANK = 8
ANCHOR = name_of(TEXT, "lora", ANCHOR_RANK, ANCHOR_RANK)
SMALL_ALPHA = name_of(TEXT, "lora", 32, 1)  # alpha is 1 where a trainer's user says nothing
LOKR = name_of(TEXT, "lokr", 8, 8)
OTHER = name_of(OTHER_TEXT, "lora", ANCHOR_RANK, ANCHOR_RANK)
SECONDS_A_STEP, SECONDS_AROUND = 1.7, 12.0  # of one core, before anything is measured

Best = Callable[[str], float | None]  # arm -> its best learning rate in the first world, once it is known


@dc.dataclass(frozen=True)
class Mode:
    """
    rates          : of `arms.RATES`, the ones to try
    shorter, longer: budgets that tell steps to equal loss
    """

    name: str
    arms: tuple[str, ...]
    finalists: tuple[str, ...]
    rates: tuple[float, ...] = RATES
    steps: int = 40
    shorter: tuple[int, ...] = (20, 28)
    longer: int = 100
    seeds: tuple[int, ...] = (1, 2, 3)
    minutes: float = 0


QUICK = Mode(
    "quick", ("torch-adamw", "hina-cautious", "hina-default"), (), (2e-3, 1e-2), steps=10, seeds=(1,), minutes=5
)
FULL = Mode("full", tuple(arm for arm in ARMS if arm not in RULED.values()), FINALISTS)
MODES = {mode.name: mode for mode in (QUICK, FULL)}


def rank_factor(rank: int, alpha: float) -> float:
    """What one learning rate is multiplied by to mean the same at every rank and alpha; 1 at rank and alpha 8."""
    return math.sqrt(ANCHOR_RANK / rank) * rank / alpha


class Plan(campaign.Plan):
    """The runs of a mode. Many are known only when an arm's rates have all been tried in the first world."""

    def __init__(self, mode: Mode, folder: Path):
        """``folder`` is where the unpacked model is kept."""
        self.mode = mode
        self.skipped = {name: reason for name in mode.arms if (reason := entry_of(name).missing()) is not None}
        self.arms = [name for name in mode.arms if name not in self.skipped]
        self.finalists = [name for name in mode.finalists if name in self.arms]
        self._folder = folder
        self._worlds: dict[str, str] = {}  # what decides a world's numbers, and an arm's
        self._arms: dict[str, str] = {}

    def run(self, world: str, arm: str, lr: float, steps: int, seed: int) -> Run:
        if world not in self._worlds:
            self._worlds[world] = WORLDS[world].fingerprint(self._folder)
        if arm not in self._arms:
            how = (ARMS[arm].constant, ARMS[arm].clip)
            self._arms[arm] = digest(entry_of(arm).identity(), repr(how))
        return Run(world, arm, lr, steps, seed, digest(self._worlds[world], self._arms[arm]))

    def base(self, world: str) -> Run:
        """No step: the held-out loss that an adapter starts from."""
        return self.run(world, "torch-adamw", 0.0, 0, self.mode.seeds[0])

    def rates(self, arm: str) -> list[float]:
        own = ARMS[arm].rates
        return [rate for rate in own if rate in self.mode.rates] or list(own)

    def sweep(self, world: str, arm: str) -> list[Run]:
        """An arm over its learning rates."""
        return [self.run(world, arm, lr, self.mode.steps, self.mode.seeds[0]) for lr in self.rates(arm)]

    def best(self, arm: str, store: Store) -> float | None:
        """The learning rate of the lowest held-out loss in the first world, once all are done."""
        sweep = self.sweep(ANCHOR, arm)
        if not any(record["loss"] is not None for run in sweep if (record := store.get(run))):
            return None
        return campaign.best_rate(sweep, store, badness)

    def first(self) -> list[Run]:
        """Every arm over its rates, at rank and alpha 8."""
        return [self.base(ANCHOR), *(run for arm in self.arms for run in self.sweep(ANCHOR, arm))]

    def seeds(self, best: Best) -> list[Run]:
        """The other seeds, each arm at its best rate."""
        return [
            self.run(ANCHOR, arm, lr, self.mode.steps, seed)
            for arm in self.arms
            if (lr := best(arm)) is not None
            for seed in self.mode.seeds[1:]
        ]

    @staticmethod
    def rounded(lr: float) -> float:
        return float(f"{lr:.3g}")

    @staticmethod
    def places() -> list[tuple[int, float]]:
        """(rank, alpha) of every LoRA: first those where alpha is the rank."""
        return sorted(((rank, alpha) for rank in RANKS for alpha in alphas(rank)), key=lambda at: at[0] != at[1])

    def at(self, rank: int, alpha: float, arm: str, lr: float, seed: int | None = None) -> Run:
        """At a rank and alpha, for the usual steps; by default with the first seed."""
        seed = self.mode.seeds[0] if seed is None else seed
        return self.run(name_of(TEXT, "lora", rank, alpha), arm, lr, self.mode.steps, seed)

    def ruled(self, arm: str, rank: int, alpha: float, lr: float) -> tuple[str, float]:
        """(arm, rate) at another rank or alpha, by the rule; what finds its rate itself keeps its one."""
        if arm in RULED and (rank, alpha) != (ANCHOR_RANK, ANCHOR_RANK):
            return RULED[arm], lr
        return arm, lr if ARMS[arm].rates == RATE_FREE else self.rounded(lr * rank_factor(rank, alpha))

    def cell(self, arm: str, rank: int, alpha: float, lr: float) -> list[Run]:
        """At another rank or alpha: the rate as it is, then by the rule; where alpha is the rank, around that too."""
        choices = [(arm, lr), self.ruled(arm, rank, alpha, lr)]
        if alpha == rank and ARMS[arm].rates != RATE_FREE:
            wanted = lr * rank_factor(rank, alpha)
            choices += [(arm, self.rounded(wanted / 3)), (arm, self.rounded(wanted * 3))]
        return [self.at(rank, alpha, *each) for each in choices]

    def cells(self, best: Best) -> list[Run]:
        """The finalists over ranks and alphas; at two of the ranks with more seeds."""
        runs = []
        for rank, alpha in self.places():
            for arm in self.finalists:
                lr = best(arm)
                if (rank, alpha) == (ANCHOR_RANK, ANCHOR_RANK) or lr is None:
                    continue
                runs += self.cell(arm, rank, alpha, lr)
                if alpha == rank in (2, 32):
                    wanted = self.ruled(arm, rank, alpha, lr)
                    runs += [self.at(rank, alpha, *wanted, seed) for seed in self.mode.seeds[1:]]
        return list(dict.fromkeys(runs))

    def budgets(self, best: Best) -> list[Run]:
        """Fewer steps at the best rate; more, also at its neighbours and with other seeds. Without a rate only more."""
        runs, seed = [], self.mode.seeds[0]
        for arm in self.arms:
            is_final = arm in self.finalists
            if (lr := best(arm)) is None or not (is_final or ARMS[arm].rates == RATE_FREE):
                continue
            rates = self.rates(arm)
            at = rates.index(lr)
            runs += [self.run(ANCHOR, arm, lr, steps, seed) for steps in self.mode.shorter if is_final]
            runs += [self.run(ANCHOR, arm, rate, self.mode.longer, seed) for rate in rates[max(0, at - 1) : at + 2]]
            runs += [self.run(ANCHOR, arm, lr, self.mode.longer, other) for other in self.mode.seeds[1:] if is_final]
        return runs

    def runs(self, best: Best) -> list[Run]:
        """All that can be named, in the order to do them."""
        runs = [*self.first(), *self.seeds(best)]
        if self.finalists:
            runs += self.cells(best)
            runs += [run for arm in self.finalists for run in self.sweep(SMALL_ALPHA, arm)]
            runs += [run for arm in self.finalists for run in self.sweep(LOKR, arm)]
            runs += self.budgets(best)
            runs += [self.base(OTHER), *(run for arm in self.finalists for run in self.sweep(OTHER, arm))]
        return list(dict.fromkeys(runs))

    def known(self, store: Store) -> list[Run]:
        return self.runs(lambda arm: self.best(arm, store))

    def everything(self) -> list[Run]:
        return self.runs(lambda arm: self.rates(arm)[len(self.rates(arm)) // 2])

    def place(self, run: Run) -> dict[str, Any]:
        return {"world": run.workload}

    def code(self, run: Run) -> str | None:
        return code(optimizer_of(run.optimizer)) if entry_of(run.optimizer).ours else None

    def guess(self, run: Run) -> float:
        return SECONDS_AROUND + SECONDS_A_STEP * run.steps


def narrowed(mode: Mode, arms: Sequence[str] | None) -> Mode:
    """A mode for some arms only."""
    campaign.there_is(arms, ARMS)
    if not arms:
        return mode
    return dc.replace(mode, arms=tuple(arms), finalists=tuple(arm for arm in mode.finalists if arm in arms))
