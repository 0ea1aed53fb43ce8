"""Doing the runs of a plan: side by side, each kept as soon as it is finished, with a progress bar."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .plan import Plan
from .runs import Run, execute
from .store import Store

LINE_EVERY = 20.0  # seconds between plain lines, where there is no terminal
TASTE = 8  # steps of the run that tells what a step costs


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the run in hand is finished and kept
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Here(Executor):
    """Runs in this process, for tests and debuggers."""

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # what an executor does
            future.set_exception(error)
        return future


def workers(jobs: int) -> Executor:
    """``jobs`` processes with one thread each; 0 is this process."""
    if jobs == 0:
        return _Here()
    spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    return ProcessPoolExecutor(jobs, spawn, _start_worker)


class Bar:
    """Progress in estimated seconds, which differ a hundredfold between runs."""

    def __init__(self, title: str, total: float):
        self._title, self._total, self._done, self._last = title, total, 0.0, 0.0
        self._before = 0.0  # done by earlier calls, so it says nothing about how fast this one is
        self._began = time.perf_counter()
        console = Console()
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(title), BarColumn(bar_width=None), TextColumn("{task.percentage:.0f}%"),
                TextColumn("{task.fields[at]}"), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(compact=True), console=console,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, at="")

    def __enter__(self) -> "Bar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def skip(self, by: float) -> None:
        self._done += by
        self._before += by

    def advance(self, by: float, at: str) -> None:
        self._done += by
        now = time.perf_counter()
        if self._bar:
            self._bar.update(self._task, completed=self._done, at=at)
        elif now - self._last >= LINE_EVERY:
            self._last = now
            rate = (self._done - self._before) / (now - self._began)
            left = (self._total - self._done) / rate
            share = min(1.0, self._done / max(self._total, 1e-9))
            print(f"{self._title} {share:.0%}, {at}, about {max(left, 0) / 60:.1f} minutes left", flush=True)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    asked: list[int] = []

    def ask(signum: int, frame: Any) -> None:
        asked.append(signum)
        signal.signal(signal.SIGINT, before)
        print("\nfinishing the runs in hand; once more to drop them")

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


def do(
    known: Callable[[], list[Run]],
    store: Store,
    folder: Path,
    pool: Executor,
    bar: Bar,
    seconds_of: Callable[[Run], float] = lambda run: 1.0,
    jobs: int = 1,
    deadline: float = float("inf"),
) -> tuple[bool, dict[str, str]]:
    """Until nothing is missing, the deadline (of `time.perf_counter`) or Ctrl-C. (whether all is done, failures)"""
    flying: dict[Future, Run] = {}
    failed: dict[str, str] = {}
    for run in known():
        if store.get(run):
            bar.skip(seconds_of(run))
    with _asked_to_stop() as stop:
        while True:
            over = stop() or time.perf_counter() > deadline
            busy = {run.key for run in flying.values()}
            todo = [r for r in known() if not store.get(r) and r.key not in busy and r.key not in failed]
            for run in [] if over else todo[: max(1, jobs) - len(flying)]:
                flying[pool.submit(execute, run, folder)] = run
            if not flying:
                return not todo and not failed, failed
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                run = flying.pop(future)
                if (error := future.exception()) is not None:
                    failed[run.key] = f"{run.workload} {run.optimizer} lr {run.lr:g}: {type(error).__name__} {error}"
                else:
                    store.add(future.result())
                bar.advance(seconds_of(run), f"{run.workload} {run.optimizer}")


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
            return do(lambda: tastes, self._store, self._base, pool, bar, jobs=jobs)[1]

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
