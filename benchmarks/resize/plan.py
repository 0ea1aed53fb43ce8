"""Which runs: rates on a seed of their own, the large LoRAs, all that is made of them, and LoRAs of small ranks."""

import dataclasses as dc
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign import plan
from benchmarks.campaign.store import Record
from benchmarks.convergence.plan import TRIAL_SEED

from .runs import PARTS, Run, Store, code
from .worlds import WORLDS

FIRST_SEED = 500  # of the results; nothing was tuned on these
FIRST_PARTS = (4, 8)  # what the issue sets bounds for


@dc.dataclass(frozen=True)
class Mode:
    """
    places : (world, rank of its large LoRAs), in the order to do them
    trained: the parts of these ranks that LoRAs are trained at, too
    steps  : of a training; 0: as many as the world says
    tuned  : whether a world's rates are tried; else the last of them is taken
    """

    name: str
    places: tuple[tuple[str, int], ...]
    trained: tuple[int, ...]
    seeds: int
    steps: int = 0
    tuned: bool = True
    minutes: float = 0.0


QUICK = Mode("quick", (("digits", 16),), (4,), 1, 60, tuned=False, minutes=5.0)
FULL = Mode("full", (("smollm2", 16), ("digits", 16), ("digits", 64), ("smollm2", 64)), (4,), 5)
MODES = {mode.name: mode for mode in (QUICK, FULL)}

Rate = Callable[[str, int], float | None]  # (world, rank) -> the large LoRA's rate, once it is known


class Plan(plan.Plan):
    """The rate is the one that is best for the large LoRA of the trial's seed."""

    def __init__(self, mode: Mode, folder: Path, only: Sequence[str] | None = None):
        plan.there_is(only, WORLDS)
        wanted = [place for place in mode.places if only is None or place[0] in only]
        reasons = {world: WORLDS[world].missing() for world, _ in wanted}
        self.mode, self.skipped = mode, {world: why for world, why in reasons.items() if why is not None}
        self.places = [place for place in wanted if place[0] not in self.skipped]
        self._bases = {world: WORLDS[world].identity(folder) for world, _ in self.places}

    def run(self, kind: str, world: str, rank: int, lr: float, seed: int) -> Run:
        return Run(kind, world, rank, lr, self.steps(world), seed, self._bases[world])

    def steps(self, world: str) -> int:
        return self.mode.steps or WORLDS[world].STEPS

    def none(self, world: str) -> Run:
        """The loss without an adapter."""
        return dc.replace(self.run("none", world, 0, 0.0, 0), steps=0)

    def train(self, world: str, rank: int, lr: float, seed: int) -> Run:
        return self.run("train", world, rank, lr, seed)

    def rates(self, world: str, rank: int) -> tuple[float, ...]:
        rates = WORLDS[world].rates(rank)
        return rates if self.mode.tuned else rates[-1:]

    def trials(self, world: str, parent: int) -> list[Run]:
        """None where there is only one learning rate."""
        rates = self.rates(world, parent)
        return [self.train(world, parent, lr, TRIAL_SEED) for lr in rates] if len(rates) > 1 else []

    def rate(self, world: str, parent: int, store: Store) -> float | None:
        """Once all have been tried."""
        rates = self.rates(world, parent)
        return rates[0] if len(rates) == 1 else plan.best_rate(self.trials(world, parent), store, badness)

    def small(self, world: str, parent: int, part: int, rate: Rate) -> list[Run]:
        """LoRAs trained at a part of the rank: at their own rate if it is known or tried, else at the large one's."""
        rank = parent // part
        own = (world, rank) in self.places or len(self.rates(world, rank)) == 1
        lr = rate(world, rank if own and self.mode.tuned else parent)
        return [] if lr is None else self.finals(world, rank, lr)

    def finals(self, world: str, rank: int, lr: float) -> list[Run]:
        return [self.train(world, rank, lr, seed) for seed in range(FIRST_SEED, FIRST_SEED + self.mode.seeds)]

    def runs(self, rate: Rate, done: Callable[[Run], bool]) -> list[Run]:
        """All that can be named, in the order to do them; what is made of a file comes when it is there."""
        runs: list[Run] = []
        for world, parent in self.places:
            lr = rate(world, parent)
            finals = self.finals(world, parent, lr) if lr is not None else []
            runs += [self.none(world), *self.trials(world, parent)]
            trained = [run for part in self.mode.trained for run in self.small(world, parent, part, rate)]
            for run in finals:
                runs += [run, *_made_of(run, FIRST_PARTS, done), *(each for each in trained if each.seed == run.seed)]
            others = tuple(part for part in PARTS if part not in FIRST_PARTS)
            runs += [made for run in finals for made in _made_of(run, others, done)]
        return list({run.key: run for run in runs}.values())

    def known(self, store: Store) -> list[Run]:
        def done(run: Run) -> bool:
            """And not diverged."""
            record = store.get(run)
            return record is not None and record.get("loss", 0.0) is not None

        return self.runs(lambda world, rank: self.rate(world, rank, store), done)

    def everything(self) -> list[Run]:
        # A trial's seed is its own, so that a guess of the rate never hides a trial.
        return self.runs(lambda world, rank: self.rates(world, rank)[0], lambda run: True)

    def place(self, run: Run) -> dict[str, Any]:
        return {"world": run.world, "what": run.kind, "rank": run.rank}

    def code(self, run: Run) -> str | None:
        return code() if run.kind in ("calibrate", "resize") else None

    def guess(self, run: Run) -> float:
        return WORLDS[run.world].seconds(run.kind, run.steps)


def calibrated(run: Run) -> Run:
    return dc.replace(run, kind="calibrate")


def resized(run: Run, part: int) -> Run:
    return dc.replace(run, kind="resize", part=part)


def _made_of(run: Run, parts: Sequence[int], done: Callable[[Run], bool]) -> list[Run]:
    if not done(run):
        return []
    calibration = calibrated(run)
    return [calibration, *(resized(run, part) for part in parts if done(calibration))]


def badness(record: Record) -> float:
    return float("inf") if record["loss"] is None else record["loss"]


def plan_of(options: Namespace, folder: Path) -> Plan:
    return Plan(MODES[options.mode], folder, options.only)
