"""The command of a campaign: resume, progress, jobs, quick and full, tables and pictures of what is there."""

import argparse
import dataclasses as dc
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure

from . import pictures
from .costs import Costs
from .driver import Bar, do, workers
from .options import complain, parser
from .plan import Plan
from .store import Record, Store

REPORT = 15.0  # seconds to write the results


@dc.dataclass(frozen=True)
class Campaign:
    """A benchmark of many runs: what is compared, how a run is done, and what is shown of the finished ones.

    full, runs: help of --full; where finished runs are kept by default
    arguments : adds its own options
    plan      : of the options and the folder of base models; raises ValueError for a name that does not exist
    execute   : (run, folder of base models) -> record
    summarise : numbers of the finished runs, as JSON says them: enough for `restored`
    restored  : these numbers -> what markdown and figures are made of
    figures   : kind -> figure, or None where there is nothing to see
    missing   : why it cannot run here, if it cannot
    """

    name: str
    about: str | None
    example: str
    full: str
    runs: str
    arguments: Callable[[argparse.ArgumentParser], Any]
    plan: Callable[[argparse.Namespace, Path], Plan]
    store: type[Store]
    execute: Callable[[Any, Path], Record]
    summarise: Callable[[Any, Any], dict[str, Any]]
    restored: Callable[[dict[str, Any]], dict[str, Any]]
    markdown: Callable[[dict[str, Any], dict[str, Any], str, list[str]], str]
    figures: Callable[[dict[str, Any]], dict[str, Any]]
    missing: Callable[[], str | None] = lambda: None

    def main(self, argv: list[str]) -> int:
        """The exit code."""
        began = time.perf_counter()
        words = parser(self.name, self.about, self.example, self.full, self.runs)
        self.arguments(words)
        options = words.parse_args(argv)
        torch.set_num_threads(1)
        if options.redraw:
            return self.redraw(options)
        if (reason := self.missing()) is not None:
            print(f"skipped: {reason}")
            return 0
        try:
            plan = self.plan(options, options.runs / "base")
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        store = self.store(options.runs / "runs.jsonl")
        if options.report:
            return self.write(plan, store, options, argv)
        if options.rerun_stale:
            store.forget(plan.stale(store))
        failed = self.work(plan, store, options, began)
        if options.plan:
            return complain(failed)
        self.write(plan, store, options, argv)
        if not plan.complete(store):
            print("not all runs are done; the same command goes on with them")
        return complain(failed)

    def work(self, plan: Plan, store: Store, options: argparse.Namespace, began: float) -> dict[str, str]:
        """Does the missing runs as far as time allows; what failed."""
        jobs, folder = options.jobs, options.runs / "base"
        costs = Costs(plan, self.store(options.runs / "costs.jsonl"))
        with workers(jobs) as pool:
            failed = {}
            if not all(costs.store.get(taste) for taste in costs.tastes):
                with Bar("measuring steps", len(costs.tastes)) as bar:
                    failed = do(self.execute, lambda: costs.tastes, costs.store, folder, pool, bar, jobs=jobs)
            describe(plan, costs, store, jobs)
            if options.plan:
                return failed
            everything = plan.everything()
            minutes = plan.mode.minutes if options.minutes is None else options.minutes
            # A run in hand is finished.
            reserve = min(30 * minutes, REPORT + 1.2 * max(map(costs.seconds, everything), default=0.0))
            deadline = began + 60 * minutes - reserve if minutes else float("inf")
            with Bar(self.name, 60 * costs.minutes(everything, jobs)) as bar:
                return do(
                    self.execute, lambda: plan.known(store), store, folder, pool, bar,
                    lambda run: costs.share(run, jobs), jobs, lambda: time.perf_counter() > deadline,
                )  # fmt: skip

    def write(self, plan: Plan, store: Store, options: argparse.Namespace, argv: list[str]) -> int:
        about = {
            "environment": measure.environment(1, torch.device("cpu")),
            "command": shlex.join(["python", "-m", f"benchmarks.{self.name}", *argv]),
        }
        return self.draw(options, plan.mode.name, about | self.summarise(plan, store))

    def redraw(self, options: argparse.Namespace) -> int:
        """From the file of results alone."""
        file = options.results / f"{options.name or f'{self.name}_{options.mode}'}.json"
        if not file.is_file():
            print(f"there is no {file}; --name says which results are to be drawn again", file=sys.stderr)
            return 2
        return self.draw(options, options.mode, json.loads(file.read_text(encoding="utf-8")))

    def draw(self, options: argparse.Namespace, mode: str, content: dict[str, Any]) -> int:
        """Tables and pictures of the numbers that are kept, so that the same can be made of them again."""
        name = options.name or f"{self.name}_{mode}"
        summary = self.restored(content)
        drawn = pictures.save(self.figures(summary), options.results / name)
        text = self.markdown(summary, content["environment"], content["command"], drawn)
        measure.write(name, content, text, options.results)
        return 0


def describe(plan: Plan, costs: Costs, store: Store, jobs: int) -> None:
    """The plan as a table."""
    everything = plan.everything()
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for run in everything:
        groups.setdefault(tuple(plan.place(run).items()), []).append(run)
    rows = [
        {**dict(place), "runs": len(runs), "steps": runs[0].steps, "minutes": costs.minutes(runs, jobs)}
        for place, runs in groups.items()
    ]
    columns = {name: name for row in rows for name in row} | {"minutes": f"minutes, {jobs} jobs"}
    print(measure.table(rows, columns))
    for name, reason in plan.skipped.items():
        print(f"skipped: {name}: {reason}")
    done = sum(store.get(run) is not None for run in plan.known(store))
    minutes = costs.minutes(everything, jobs)
    print(f"{len(everything)} runs, {done} of them done; all of them take about {minutes:.0f} minutes", flush=True)
