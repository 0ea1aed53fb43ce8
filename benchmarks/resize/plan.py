"""Which runs: rates on a seed of their own, the large LoRAs, all that is made of them, and LoRAs of small ranks."""

import dataclasses as dc
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.campaign import plan
from benchmarks.campaign.store import Record
from benchmarks.convergence import diffusion
from benchmarks.convergence.plan import TRIAL_SEED

from .runs import Run, Store, code

RATES = (6e-3, 3e-3)
FIRST_SEED = 500  # of the results; nothing was tuned on these


@dc.dataclass(frozen=True)
class Mode:
    """parents: ranks; trained: the parts of them that are ranks of LoRAs that are trained, too, at the same rate"""

    name: str
    parents: tuple[int, ...]
    trained: tuple[int, ...]
    steps: int
    seeds: int
    rates: tuple[float, ...] = RATES
    minutes: float = 0.0


QUICK = Mode("quick", (16,), (4,), 60, 1, RATES[1:], minutes=5.0)
FULL = Mode("full", (16,), (4,), 600, 5)
MODES = {mode.name: mode for mode in (QUICK, FULL)}


class Plan(plan.Plan):
    """The rate is the one that is best for the large LoRA of the trial's seed."""

    def __init__(self, mode: Mode, folder: Path):
        self.mode, self.skipped, self.base = mode, {}, diffusion.identity(folder)

    def train(self, rank: int, lr: float, seed: int) -> Run:
        return Run("train", rank, lr, self.mode.steps, seed, self.base)

    def trials(self, parent: int) -> list[Run]:
        """None where there is only one learning rate."""
        rates = self.mode.rates
        return [self.train(parent, lr, TRIAL_SEED) for lr in rates] if len(rates) > 1 else []

    def rate(self, parent: int, store: Store) -> float | None:
        """Once all have been tried."""
        return self.mode.rates[0] if len(self.mode.rates) == 1 else plan.best_rate(self.trials(parent), store, badness)

    def finals(self, rank: int, lr: float) -> list[Run]:
        return [self.train(rank, lr, seed) for seed in range(FIRST_SEED, FIRST_SEED + self.mode.seeds)]

    def known(self, store: Store) -> list[Run]:
        found: dict[str, Run] = {}
        for parent in self.mode.parents:
            runs, lr = self.trials(parent), self.rate(parent, store)
            if lr is not None:
                finals = self.finals(parent, lr)
                runs += finals + [resized(run) for run in finals if store.get(run)]
                runs += [run for part in self.mode.trained for run in self.finals(parent // part, lr)]
            found |= {run.key: run for run in runs}
        return list(found.values())

    def everything(self) -> list[Run]:
        found: dict[str, Run] = {}
        for parent in self.mode.parents:
            finals = self.finals(parent, self.mode.rates[0])
            runs = [*self.trials(parent), *finals, *map(resized, finals)]
            runs += [run for part in self.mode.trained for run in self.finals(parent // part, self.mode.rates[0])]
            # A trial's rate is its own, a final run's is a guess: both count.
            found |= {run.key: run for run in runs}
        return list(found.values())

    def place(self, run: Run) -> dict[str, Any]:
        return {"what": run.kind, "rank": run.rank}

    def code(self, run: Run) -> str | None:
        return code() if run.kind == "resize" else None

    def guess(self, run: Run) -> float:
        return 30.0 if run.kind == "resize" else 10.0 + 0.07 * run.steps


def resized(run: Run) -> Run:
    return dc.replace(run, kind="resize")


def badness(record: Record) -> float:
    return float("inf") if record["loss"] is None else record["loss"]


def plan_of(options: Namespace, folder: Path) -> Plan:
    return Plan(MODES[options.mode], folder)
