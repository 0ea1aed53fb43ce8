"""Measure, train, compare. Stop it at any point; the same command goes on."""

import argparse
import os
import shlex
import sys
import time
from collections import defaultdict

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism, and layers are timed on one thread
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks import measure
from benchmarks.campaign.driver import Bar, do, workers
from benchmarks.campaign.options import complain
from benchmarks.campaign.options import parser as shared_parser

from . import methods, patches, plots, report
from .execution import execute
from .plan import MODES, PARTS, Costs, Plan, narrowed
from .runs import Run
from .store import Store
from .summary import summarise

EXAMPLE = f"""examples:
  python -m benchmarks.adlrns --quick
  python -m benchmarks.adlrns --full --plan      how many runs, how long
  python -m benchmarks.adlrns --full             go on with it; Ctrl-C keeps what is finished
  python -m benchmarks.adlrns --full --parts layer step
  python -m benchmarks.adlrns --full --parts adapter --only adlrns lora --data 24 100
  python -m benchmarks.adlrns --full --report    write the tables from what is there

parts: layer (time of one Linear), step (what an adapter adds to a training step), patches (denoising), time (of the
       patch networks), adapter (on the frozen diffusion model)
patch methods: {", ".join(patches.METHODS)}
adapters: {", ".join(methods.METHODS)}
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = shared_parser("adlrns", __doc__, EXAMPLE, "about 2 hours on 2 cores", "runs/adlrns-benchmark")
    parser.add_argument("--parts", nargs="+", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods")
    parser.add_argument("--data", nargs="+", metavar="D", help="these widths of patch networks or numbers of images")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options, began = parse(argv), time.perf_counter()
    torch.set_num_threads(1)
    try:
        mode = narrowed(MODES[options.mode], options.parts, options.only, options.data)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    plan, store = Plan(mode, options.runs), Store(options.runs / "runs.jsonl")
    if options.report:
        return write(plan, store, options, argv)
    if options.rerun_stale:
        store.forget(plan.stale(store))
    until = began + 60 * options.minutes if options.minutes else float("inf")
    costs = Costs(plan, options.runs / "costs.jsonl")
    folder = options.runs / "base"
    with workers(options.jobs) as pool:
        tastes = costs.tastes()
        with Bar("measuring steps", len(tastes)) as bar:
            failed = do(execute, lambda: tastes, costs.store, folder, pool, bar, jobs=options.jobs)
        describe(plan, costs, store, options.jobs)
        if options.plan:
            return complain(failed)
        total = 60 * costs.minutes(plan.everything(), options.jobs)
        with Bar("adlrns", total) as bar:
            failed = do(
                execute, lambda: plan.known(store), store, folder, pool, bar,
                lambda run: costs.seconds(run) / (1 if run.alone else max(1, options.jobs)),
                options.jobs, lambda: time.perf_counter() > until,
            )  # fmt: skip
    write(plan, store, options, argv)
    if not plan.complete(store):
        print("not all runs are done; the same command goes on with them")
    return complain(failed)


def describe(plan: Plan, costs: Costs, store: Store, jobs: int) -> None:
    """The plan as a table."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in plan.everything():
        groups[run.part, run.data].append(run)
    rows = []
    for (part, data), runs in groups.items():
        minutes = costs.minutes(runs, jobs)
        rows.append({"part": part, "data": data, "runs": len(runs), "steps": runs[-1].steps, "minutes": minutes})
    columns = {"part": "part", "data": "data", "runs": "runs", "steps": "steps, epochs or rounds"}
    print(measure.table(rows, columns | {"minutes": f"minutes, {jobs} jobs"}))
    done = sum(store.get(run) is not None for run in plan.known(store))
    total, minutes = len(plan.everything()), costs.minutes(plan.everything(), jobs)
    print(
        f"{total} runs, {done} of them done; all of them take about {minutes:.0f} minutes of CPU time with {jobs} jobs"
    )


def write(plan: Plan, store: Store, options: argparse.Namespace, argv: list[str]) -> int:
    name = options.name or f"adlrns_{plan.mode.name}"
    env = measure.environment(1, torch.device("cpu"))
    found = summarise(plan, store)
    drawn = plots.save(found, options.results / name)
    text = report.markdown(found, env, shlex.join(["python", "-m", "benchmarks.adlrns", *argv]), drawn)
    measure.write(name, {"environment": env, **found}, text, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
