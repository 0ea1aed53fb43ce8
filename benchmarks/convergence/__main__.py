"""Tune, train, compare. Stop it at any point; the same command goes on."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.campaign.runner import Campaign

from . import plots, report
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


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="OPTIMIZER", help="these, on both halves")
    parser.add_argument("--workloads", nargs="+", metavar="WORKLOAD")


def plan(options: Namespace, base: Path) -> Plan:
    mode = narrowed(MODES[options.mode], options.workloads, options.only)
    print("looking at workloads and base models ...", flush=True)
    return Plan(mode, base)


CAMPAIGN = Campaign(
    name="convergence",
    about=__doc__,
    example=EXAMPLE,
    full="at most 2 hours a call",
    runs="runs/convergence",
    arguments=arguments,
    plan=plan,
    store=Store,
    execute=execute,
    summarise=lambda plan, store: kept(summarise(plan, store)),
    restored=restored,
    markdown=report.markdown,
    figures=plots.figures,
)
main = CAMPAIGN.main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
