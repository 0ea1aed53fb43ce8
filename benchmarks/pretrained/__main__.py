"""Adapters on a language model that others trained: every optimizer over learning rates, then ranks, LoKr, seeds."""

import argparse
import os
import shlex
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is in a package
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from benchmarks import measure
from benchmarks.campaign.driver import Bar, do, workers
from benchmarks.campaign.options import complain
from benchmarks.campaign.options import parser as shared_parser
from benchmarks.convergence.store import Store
from benchmarks.convergence.summary import plain

from . import model, plots
from .arms import ARMS
from .plan import MODES, Plan, narrowed, seconds
from .report import markdown
from .runs import execute
from .summary import summarise

EXAMPLE = f"""examples:
  python -m benchmarks.pretrained --quick
  python -m benchmarks.pretrained --full --plan      how many runs, how long
  python -m benchmarks.pretrained --full             go on with it; Ctrl-C keeps what is finished
  python -m benchmarks.pretrained --full --only torch-adamw hina-default
  python -m benchmarks.pretrained --full --report    write the tables from what is there

arms: {", ".join(ARMS)}
"""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = shared_parser("pretrained", __doc__, EXAMPLE, "about 5 hours of one core", "runs/pretrained")
    parser.add_argument("--only", nargs="+", metavar="ARM")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options, began = parse(argv), time.perf_counter()
    torch.set_num_threads(1)
    if (reason := model.missing()) is not None:
        print(f"skipped: {reason}; pip install -e .[pretrained]")
        return 0
    try:
        mode = narrowed(MODES[options.mode], options.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    base = options.runs / "base"
    plan, store = Plan(mode, base), Store(options.runs / "runs.jsonl")
    if options.report:
        return write(plan, store, options, argv)
    if options.rerun_stale:
        store.forget(plan.stale(store))
    jobs = max(1, options.jobs)
    describe(plan, store, jobs)
    if options.plan:
        return 0
    minutes = mode.minutes if options.minutes is None else options.minutes
    reserve = 1.2 * max(map(seconds, plan.all())) if minutes else 0  # a run in hand is finished
    deadline = began + 60 * minutes - reserve if minutes else float("inf")
    with workers(options.jobs) as pool, Bar("pretrained", sum(map(seconds, plan.all())) / jobs) as bar:
        failures = do(
            execute, lambda: plan.known(store), store, base, pool, bar, lambda run: seconds(run) / jobs, options.jobs,
            lambda: time.perf_counter() > deadline,
        )  # fmt: skip
    write(plan, store, options, argv)
    if not all(store.get(run) for run in plan.known(store)):
        print("not all runs are done; the same command goes on with them")
    return complain(failures)


def describe(plan: Plan, store: Store, jobs: int) -> None:
    runs = plan.all()
    for name, reason in plan.skipped.items():
        print(f"skipped: {name}: {reason}")
    done = sum(store.get(run) is not None for run in plan.known(store))
    minutes = sum(map(seconds, runs)) / 60 / jobs
    print(f"{len(runs)} runs, {done} of them done; all of them take about {minutes:.0f} minutes", flush=True)


def write(plan: Plan, store: Store, options: argparse.Namespace, argv: list[str]) -> int:
    name = options.name or f"pretrained_{plan.mode.name}"
    summary = summarise(plan, store)
    env = measure.environment(1, torch.device("cpu"))
    command = shlex.join(["python", "-m", "benchmarks.pretrained", *argv])
    drawn = plots.save(summary, options.results / name)
    text = markdown(summary, plan, env, command, drawn)
    measure.write(name, {"environment": env, **plain(summary)}, text, options.results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
