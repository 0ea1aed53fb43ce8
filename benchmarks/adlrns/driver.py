"""Doing the runs of a plan: side by side, each kept as soon as it is finished; those that measure time one by one."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from pathlib import Path

from benchmarks.convergence.driver import Bar

from .runs import Run, execute
from .store import Store


def do(
    known: Callable[[], list[Run]],
    store: Store,
    folder: Path,
    pool: Executor,
    bar: Bar,
    seconds_of: Callable[[Run], float] = lambda run: 1.0,
    jobs: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, str]:
    """Until nothing is missing, `stop` or Ctrl-C, which lets the runs in hand finish. What failed: key -> why."""
    flying: dict[Future, Run] = {}
    failed: dict[str, str] = {}
    stopped = False
    for run in known():
        if store.get(run):
            bar.skip(seconds_of(run))

    def collect(futures) -> None:
        for future in futures:
            run = flying.pop(future)
            if (error := future.exception()) is not None:
                failed[run.key] = f"{run}: {type(error).__name__} {error}"
            else:
                store.add(future.result())
            bar.advance(seconds_of(run), str(run))

    while True:
        try:
            stopped = stopped or stop()
            busy = {run.key for run in flying.values()}
            todo = [r for r in known() if not store.get(r) and r.key not in busy and r.key not in failed]
            beside = [run for run in todo if not run.alone]
            room = max(1, jobs) - len(flying)
            if not beside and not flying:
                beside, room = todo, 1
            for run in [] if stopped else beside[:room]:
                flying[pool.submit(execute, run, folder)] = run
            if not flying:
                return failed
            collect(wait(flying, return_when=FIRST_COMPLETED).done)
        except KeyboardInterrupt:
            if stopped:
                raise
            stopped = True
            print("\nfinishing the runs in hand; once more to drop them")
