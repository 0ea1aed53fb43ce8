"""Which runs a benchmark is made of: the same number of trials for all, then several seeds at several budgets."""

import dataclasses as dc
import math
from collections.abc import Sequence
from pathlib import Path

from .optimizers import BASELINES, OPTIMIZERS, OURS, REFERENCES, Entry, code
from .runs import Run
from .store import Store
from .task import digest
from .workloads import WORKLOADS

REACH = 8.0  # learning rates to try: from centre / REACH to centre * REACH
TRIAL_SEED = 1000  # no seed of the curves, so that luck in a trial does not count again
# The first half is there to choose among ours, against these; the second half to compare the chosen with everyone.
FIRST_HALF = (*REFERENCES, "came")
CONFIRMED = ("hina-control", "hina-default", "camp-default", "coptim-default")
# Equal bits, as tests say: the control is torch-adamw, AdaptiveHinaAdamW at its defaults steps as HinaAdamW does.
SAME = ("hina-control", "adaptive-default")


@dc.dataclass(frozen=True)
class Mode:
    name: str
    workloads: tuple[str, ...]
    optimizers: tuple[str, ...]
    trials: int
    seeds: tuple[int, int]  # to choose on the first half, to confirm on the second
    multiples: tuple[float, ...]
    scale: float = 1.0  # of each workload's reference budget
    minutes: float = 0
    confirmed: tuple[str, ...] = CONFIRMED

    def steps(self, workload: str, multiple: float = 1.0) -> int:
        return max(1, round(WORKLOADS[workload].steps * self.scale * multiple))

    def seeds_of(self, workload: str) -> int:
        return self.seeds[WORKLOADS[workload].half - 1]

    def entries(self, workload: str) -> dict[str, Entry]:
        """What runs on a workload, or could if it were installed."""
        problem = WORKLOADS[workload]
        wanted = {*self.confirmed, *((*FIRST_HALF, *OURS) if problem.half == 1 else BASELINES)}
        return {
            name: OPTIMIZERS[name]
            for name in self.optimizers
            if name in wanted and OPTIMIZERS[name].unfit(problem) is None
        }


QUICK = Mode(
    "quick",
    ("diffusion-lora", "characters-lora", "digits-full", "digits-lora"),
    ("torch-adamw", "bnb-adamw8bit", "hina-control", "hina-default", "hina-cautious"),
    trials=3,
    seeds=(2, 2),
    multiples=(0.5, 0.7, 1.0, 1.4),
    scale=0.4,
    minutes=5,
)
FULL = Mode(
    "full",
    tuple(WORKLOADS),
    tuple(name for name in OPTIMIZERS if name not in SAME),
    trials=5,
    seeds=(2, 3),
    multiples=(0.5, 0.7, 1.0, 1.4),
    minutes=120,
)
MODES = {mode.name: mode for mode in (QUICK, FULL)}


def learning_rates(centre: float, trials: int) -> list[float]:
    """Log-uniform, from the golden-ratio sequence: evenly spread for every n, the centre first."""
    places = [(0.5 + i * (math.sqrt(5) - 1) / 2) % 1 for i in range(trials)]
    return [float(f"{centre * REACH ** (2 * place - 1):.3g}") for place in places]


class Plan:
    """The runs of a mode. Those of the curves are known when the trials they follow are done."""

    def __init__(self, mode: Mode, folder: Path):
        """``folder`` holds base models; they are trained here if they are not there."""
        self.mode = mode
        self.workloads = {name: WORKLOADS[name].fingerprint(folder) for name in mode.workloads}
        self.skipped = {name: reason for name in mode.optimizers if (reason := OPTIMIZERS[name].missing()) is not None}
        self.unfit = {
            f"{name} on {workload}": reason
            for workload in mode.workloads
            for name in mode.optimizers
            if (reason := OPTIMIZERS[name].unfit(WORKLOADS[workload])) is not None
        }
        self.pairs = [
            (workload, name)
            for workload in mode.workloads
            for name in mode.entries(workload)
            if name not in self.skipped
        ]
        self._identity = {
            (workload, name): digest(self.workloads[workload], OPTIMIZERS[name].identity())
            for workload, name in self.pairs
        }

    def run(self, workload: str, optimizer: str, lr: float, steps: int, seed: int) -> Run:
        return Run(workload, optimizer, lr, steps, seed, self._identity[workload, optimizer])

    def trials(self, workload: str, optimizer: str) -> list[Run]:
        entry = OPTIMIZERS[optimizer]
        centre = entry.centre(WORKLOADS[workload].lr)
        steps = self.mode.steps(workload)
        rates = learning_rates(centre, 1 if entry.untuned else self.mode.trials)
        return [self.run(workload, optimizer, lr, steps, TRIAL_SEED) for lr in rates]

    def chosen(self, workload: str, optimizer: str, store: Store) -> float | None:
        """The learning rate of the best trial, once all are done."""
        records = [store.get(run) for run in self.trials(workload, optimizer)]
        if any(record is None for record in records):
            return None
        losses = {r["lr"]: math.inf if r["loss"] is None else r["loss"] for r in records if r is not None}
        return min(losses, key=losses.__getitem__)

    def curve(self, workload: str, optimizer: str, store: Store) -> dict[int, list[Run]]:
        """seed -> runs by budget; empty while the learning rate is not known."""
        lr = self.chosen(workload, optimizer, store)
        if lr is None:
            return {}
        budgets = [self.mode.steps(workload, multiple) for multiple in self.mode.multiples]
        return {
            s: [self.run(workload, optimizer, lr, n, s) for n in budgets] for s in range(self.mode.seeds_of(workload))
        }

    def known(self, store: Store) -> list[Run]:
        """All runs that can be named by now, in the order to do them."""
        runs: list[Run] = []
        for workload, optimizer in self.pairs:
            runs += self.trials(workload, optimizer)
            for by_budget in self.curve(workload, optimizer, store).values():
                runs += by_budget
        return runs

    def steps_of(self, workload: str) -> int:
        """Optimizer steps that one optimizer takes on a workload, trials and curves."""
        budgets = [self.mode.steps(workload, multiple) for multiple in self.mode.multiples]
        return self.mode.trials * self.mode.steps(workload) + self.mode.seeds_of(workload) * sum(budgets)

    def runs_of(self, workload: str) -> int:
        """Runs of one optimizer on a workload."""
        return self.mode.trials + self.mode.seeds_of(workload) * len(self.mode.multiples)

    def stale(self, store: Store) -> set[str]:
        """Keys of our runs that another version of the code made."""
        return {
            run.key
            for run in self.known(store)
            if OPTIMIZERS[run.optimizer].ours and (record := store.get(run)) and record["code"] != code(run.optimizer)
        }


def narrowed(mode: Mode, workloads: Sequence[str] | None, optimizers: Sequence[str] | None) -> Mode:
    """A mode for some names only; a variant that is named is run on both halves."""
    for name, known in ((workloads, WORKLOADS), (optimizers, OPTIMIZERS)):
        for each in name or ():
            if each not in known:
                raise ValueError(f"there is no {each!r}; there are {', '.join(known)}")
    changes: dict = {}
    if workloads:
        changes["workloads"] = tuple(workloads)
    if optimizers:
        changes["optimizers"] = tuple(optimizers)
        changes["confirmed"] = tuple(optimizers)
    return dc.replace(mode, **changes)
