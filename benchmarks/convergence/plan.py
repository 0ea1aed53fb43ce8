"""Which runs a benchmark is made of: the same number of trials for all, then several seeds at several budgets."""

import dataclasses as dc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign import plan as campaign
from benchmarks.campaign.store import Record

from .optimizers import BASELINES, OPTIMIZERS, OURS, REFERENCES, Entry, code
from .runs import Run
from .store import Store
from .task import digest
from .workloads import WORKLOADS

TASTE = 8  # steps of the run that tells what a step costs
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


def badness(record: Record) -> float:
    return math.inf if record["loss"] is None else record["loss"]


class Plan(campaign.Plan):
    def __init__(self, mode: Mode, folder: Path):
        """``folder`` holds base models; they are trained here if they are not there."""
        self.mode = mode
        self.workloads = {name: WORKLOADS[name].fingerprint(folder) for name in mode.workloads}
        missing = {name: reason for name in mode.optimizers if (reason := OPTIMIZERS[name].missing()) is not None}
        self.skipped = missing | {
            f"{name} on {workload}": reason
            for workload in mode.workloads
            for name in mode.optimizers
            if (reason := OPTIMIZERS[name].unfit(WORKLOADS[workload])) is not None
        }
        self.pairs = [
            (workload, name) for workload in mode.workloads for name in mode.entries(workload) if name not in missing
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
        return campaign.best_rate(self.trials(workload, optimizer), store, badness)

    def curve(self, workload: str, optimizer: str, lr: float | None) -> dict[int, list[Run]]:
        """seed -> runs by budget; empty while the learning rate is not known."""
        if lr is None:
            return {}
        budgets = [self.mode.steps(workload, multiple) for multiple in self.mode.multiples]
        return {
            s: [self.run(workload, optimizer, lr, n, s) for n in budgets] for s in range(self.mode.seeds_of(workload))
        }

    def _of(self, workload: str, optimizer: str, lr: float | None) -> list[Run]:
        curves = self.curve(workload, optimizer, lr).values()
        return self.trials(workload, optimizer) + [run for by_budget in curves for run in by_budget]

    def known(self, store: Store) -> list[Run]:
        return [run for pair in self.pairs for run in self._of(*pair, self.chosen(*pair, store))]

    def everything(self) -> list[Run]:
        return [run for pair in self.pairs for run in self._of(*pair, self.trials(*pair)[0].lr)]

    def place(self, run: Run) -> dict[str, Any]:
        return {"workload": run.workload, "half": WORKLOADS[run.workload].half}

    def taste(self, run: Run) -> Run:
        first = self.trials(run.workload, run.optimizer)[0]
        return dc.replace(first, steps=TASTE, seed=0)

    def alike(self, taste: Run) -> str:
        return taste.workload

    def code(self, run: Run) -> str | None:
        return code(run.optimizer) if OPTIMIZERS[run.optimizer].ours else None


def narrowed(mode: Mode, workloads: Sequence[str] | None, optimizers: Sequence[str] | None) -> Mode:
    """A mode for some names only; a variant that is named is run on both halves."""
    campaign.there_is(workloads, WORKLOADS)
    campaign.there_is(optimizers, OPTIMIZERS)
    changes: dict = {}
    if workloads:
        changes["workloads"] = tuple(workloads)
    if optimizers:
        changes["optimizers"] = tuple(optimizers)
        changes["confirmed"] = tuple(optimizers)
    return dc.replace(mode, **changes)
