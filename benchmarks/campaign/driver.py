"""Doing the runs of a plan: side by side, each kept as soon as it is finished, with a progress bar."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .store import AnyRun, Record, Store

LINE_EVERY = 20.0  # seconds between plain lines, where there is no terminal


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
    execute: Callable[[Any, Path], Record],
    known: Callable[[], Sequence[AnyRun]],
    store: Store,
    folder: Path,
    pool: Executor,
    bar: Bar,
    seconds_of: Callable[[Any], float] = lambda run: 1.0,
    jobs: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Until nothing of what is ``known`` by then is missing, ``stop``, or Ctrl-C, which lets the runs in hand finish.

    Runs that measure time are done alone, after the others. What failed: key -> why.
    """
    flying: dict[Future, AnyRun] = {}
    failed: dict[str, str] = {}
    for run in known():
        if store.get(run):
            bar.skip(seconds_of(run))

    def collect(futures: Iterable[Future]) -> None:
        for future in futures:
            run = flying.pop(future)
            if (error := future.exception()) is not None:
                failed[run.key] = f"{run}: {type(error).__name__} {error}"
            else:
                store.add(future.result())
            bar.advance(seconds_of(run), str(run))

    with _asked_to_stop() as asked:
        while True:
            over = asked() or stop()
            busy = {run.key for run in flying.values()}
            todo = [r for r in known() if not store.get(r) and r.key not in busy and r.key not in failed]
            beside = [run for run in todo if not run.alone]
            room = max(1, jobs) - len(flying)
            if not beside and not flying:
                beside, room = todo, 1
            for run in [] if over else beside[:room]:
                flying[pool.submit(execute, run, folder)] = run
            if not flying:
                return failed
            collect(wait(flying, return_when=FIRST_COMPLETED).done)
