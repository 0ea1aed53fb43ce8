"""Tune, train, compare. Stop it at any point; the same command goes on."""

import argparse
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks import measure
from benchmarks.campaign.driver import Bar, do, workers
from benchmarks.campaign.options import complain
from benchmarks.campaign.options import parser as shared_parser

from . import plots, report
from .costs import Costs
from .optimizers import OPTIMIZERS
from .plan import MODES, Plan, narrowed
from .runs import execute
from .store import Store
from .summary import kept, restored, summarise
from .workloads import WORKLOADS

EXAMPLE = f"""examples:
  python -m benchmarks.convergence --quick
  python -m benchmarks.convergence --full --plan      how many runs, how long
  python -m benchmarks.convergence --full             go on with it; Ctrl-C keeps what is finished
  python -m benchmarks.convergence --full --only torch-adamw hina-default --workloads diffusion-lokr
  python -m benchmarks.convergence --full --report    write the tables from what is there
  python -m benchmarks.convergence --redraw --name convergence_full    the same from its results, without runs

workloads: {", ".join(WORKLOADS)}
optimizers: {", ".join(OPTIMIZERS)}
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = shared_parser("convergence", __doc__, EXAMPLE, "at most 2 hours a call", "runs/convergence")
    parser.add_argument("--only", nargs="+", metavar="OPTIMIZER", help="these, on both halves")
    parser.add_argument("--workloads", nargs="+", metavar="WORKLOAD")
    parser.add_argument("--redraw", action="store_true", help="write tables and pictures again from NAME.json")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options, began = parse(argv), time.perf_counter()
    torch.set_num_threads(1)
    if options.redraw:
        return redraw(options)
    try:
        mode = narrowed(MODES[options.mode], options.workloads, options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    base = options.runs / "base"
    print("looking at workloads and base models ...", flush=True)
    plan, store = Plan(mode, base), Store(options.runs / "runs.jsonl")
    if options.report:
        return write(plan, store, options, argv)
    if options.rerun_stale:
        store.forget(plan.stale(store))
    minutes = mode.minutes if options.minutes is None else options.minutes
    deadline = began + 60 * minutes - 15 if minutes else float("inf")  # 15 s for runs in hand and the report
    with workers(options.jobs) as pool:
        costs = Costs(plan, options.runs / "costs.jsonl", base)
        failures = costs.measure(pool, options.jobs)
        describe(plan, costs, store, options.jobs)
        if options.plan:
            return complain(failures)
        with Bar("convergence", costs.total() / max(1, options.jobs)) as bar:
            failures = do(
                execute, lambda: plan.known(store), store, base, pool, bar,
                lambda run: costs.seconds(run) / max(1, options.jobs), options.jobs,
                lambda: time.perf_counter() > deadline,
            )  # fmt: skip
    write(plan, store, options, argv)
    if not all(store.get(run) for run in plan.known(store)):
        print("not all runs are done; the same command goes on with them")
    return complain(failures)


def describe(plan: Plan, costs: Costs, store: Store, jobs: int) -> None:
    """The plan as a table."""
    names = defaultdict(list)
    for workload, name in plan.pairs:
        names[workload].append(name)
    rows = []
    for workload, optimizers in names.items():
        steps = [cost for name in optimizers if (cost := costs.step_ms(workload, name))]
        rows.append(
            {
                "workload": workload,
                "half": WORKLOADS[workload].half,
                "optimizers": len(optimizers),
                "runs": len(optimizers) * plan.runs_of(workload),
                "budget": plan.mode.steps(workload),
                "step": f"{min((s for s, _ in steps), default=0):.1f}-{max((s for s, _ in steps), default=0):.1f}",
                "setup": round(costs.setup(workload, optimizers[0]), 2),
                "minutes": round(sum(costs.pair(workload, name) for name in optimizers) / 60 / max(1, jobs), 1),
            }
        )
    columns = {name: name for name in ("workload", "half", "optimizers", "runs", "budget")}
    columns |= {"step": "ms a step", "setup": "s around a run", "minutes": f"minutes, {jobs} jobs"}
    print(measure.table(rows, columns))
    for name, reason in (plan.skipped | plan.unfit).items():
        print(f"skipped: {name}: {reason}")
    total = sum(plan.runs_of(workload) for workload, _ in plan.pairs)
    done = sum(store.get(run) is not None for run in plan.known(store))
    print(f"{total} runs, {done} of them done; all of them take about {costs.total() / 60 / max(1, jobs):.0f} minutes")


def write(plan: Plan, store: Store, options: argparse.Namespace, argv: list[str]) -> int:
    command = shlex.join(["python", "-m", "benchmarks.convergence", *argv])
    name = options.name or f"convergence_{plan.mode.name}"
    return draw(name, kept(summarise(plan, store)), measure.environment(1, torch.device("cpu")), command, options)


def redraw(options: argparse.Namespace) -> int:
    """From the file of results alone."""
    name = options.name or f"convergence_{options.mode}"
    file = options.results / f"{name}.json"
    if not file.is_file():
        print(f"there is no {file}; --name says which results are to be drawn again", file=sys.stderr)
        return 2
    content = json.loads(file.read_text(encoding="utf-8"))
    return draw(name, content, content["environment"], content["command"], options)


def draw(name: str, content: dict[str, Any], env: dict[str, Any], command: str, options: argparse.Namespace) -> int:
    """Tables and pictures of the numbers that are kept, so that the same can be made of them again."""
    content = {"environment": env, "command": command} | content
    summary = restored(content)
    drawn = plots.save(summary, options.results / name)
    measure.write(name, content, report.markdown(summary, env, command, drawn), options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
