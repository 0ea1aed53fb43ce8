"""What the runs of a plan cost in time, measured once by a short run of each kind."""

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import Any

from .plan import Plan
from .store import Record, Store


def _unit(record: Record) -> float:
    """Seconds of a step, epoch or round."""
    return record.get("unit_ms", record.get("step_ms", 0.0)) / 1e3


class Costs:
    """Seconds of runs; `store` keeps what was measured."""

    def __init__(self, plan: Plan, store: Store):
        self.plan, self.store = plan, store

    @cached_property
    def tastes(self) -> list[Any]:
        """The short runs; one that fails would fail in the benchmark."""
        return list(dict.fromkeys(t for run in self.plan.everything() if (t := self.plan.taste(run)) is not None))

    @cached_property
    def _around(self) -> dict[Hashable, float]:
        """Seconds that a run takes besides its steps."""
        least: dict[Hashable, float] = {}
        for taste in self.tastes:
            if (record := self.store.get(taste)) is not None:
                place, around = self.plan.alike(taste), record["seconds"] - record["steps"] * _unit(record)
                least[place] = max(0.0, min(around, least.get(place, around)))
        return least

    def seconds(self, run: Any) -> float:
        taste = self.plan.taste(run)
        record = None if taste is None else self.store.get(taste)
        if record is None:
            return self.plan.guess(run)
        return self._around[self.plan.alike(taste)] + run.steps * _unit(record)

    def share(self, run: Any, jobs: int) -> float:
        """Seconds that a run holds up the others; one that measures time has the machine to itself."""
        return self.seconds(run) / (1 if run.alone else max(1, jobs))

    def minutes(self, runs: Sequence[Any], jobs: int) -> float:
        return sum(self.share(run, jobs) for run in runs) / 60
