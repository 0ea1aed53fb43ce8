"""What the runs of a plan cost in time, measured."""

from concurrent.futures import Executor
from pathlib import Path

from benchmarks.campaign.driver import Bar, do

from .plan import Plan
from .runs import Run, execute
from .store import Store

TASTE = 8  # steps of the run that tells what a step costs


class Costs:
    """Measured seconds of set-up and of a step for every pair of a plan."""

    def __init__(self, plan: Plan, file: Path, base: Path):
        """``file`` keeps what was measured, ``base`` is where the base models are."""
        self._plan, self._base, self._store = plan, base, Store(file)

    def _taste(self, workload: str, optimizer: str) -> Run:
        lr = self._plan.trials(workload, optimizer)[0].lr
        return self._plan.run(workload, optimizer, lr, TASTE, 0)

    def measure(self, pool: Executor, jobs: int) -> dict[str, str]:
        """What is not yet measured; a pair that fails here would fail in the benchmark."""
        tastes = [self._taste(*pair) for pair in self._plan.pairs]
        if all(self._store.get(run) for run in tastes):
            return {}
        with Bar("measuring a step", len(tastes)) as bar:
            return do(execute, lambda: tastes, self._store, self._base, pool, bar, jobs=jobs)

    def step_ms(self, workload: str, optimizer: str) -> tuple[float, float] | None:
        """(a whole step, the optimizer's part)"""
        record = self._store.get(self._taste(workload, optimizer))
        return (record["step_ms"], record["optimizer_ms"]) if record else None

    def setup(self, workload: str, optimizer: str) -> float:
        """Seconds a run takes besides its steps; a worker's first run also loads libraries."""
        records = [self._store.get(self._taste(workload, name)) for name in self._plan.mode.optimizers
                   if (workload, name) in self._plan.pairs]  # fmt: skip
        return min((r["seconds"] - TASTE * r["step_ms"] / 1e3 for r in records if r), default=0.1)

    def seconds(self, run: Run) -> float:
        cost = self.step_ms(run.workload, run.optimizer)
        return max(0.01, self.setup(run.workload, run.optimizer)) + run.steps * (cost[0] if cost else 10) / 1e3

    def pair(self, workload: str, optimizer: str) -> float:
        """Seconds of all runs of an optimizer on a workload."""
        plan, cost = self._plan, self.step_ms(workload, optimizer)
        steps = plan.steps_of(workload) * (cost[0] if cost else 10) / 1e3
        return plan.runs_of(workload) * max(0.01, self.setup(workload, optimizer)) + steps

    def total(self) -> float:
        return sum(self.pair(*pair) for pair in self._plan.pairs)
