"""Adapters on a language model that others trained: every optimizer over learning rates, then ranks, LoKr, seeds."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is in a package
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks.campaign.runner import Campaign
from benchmarks.convergence.store import Store
from benchmarks.convergence.summary import plain

from . import model, plots, report
from .arms import ARMS
from .plan import MODES, Plan, narrowed
from .runs import execute
from .summary import restored, summarise

EXAMPLE = f"""examples:
  python -m benchmarks.pretrained --quick
  python -m benchmarks.pretrained --full --plan      how many runs, how long
  python -m benchmarks.pretrained --full             go on with it; Ctrl-C keeps what is finished
  python -m benchmarks.pretrained --full --only torch-adamw hina-default
  python -m benchmarks.pretrained --full --report    write the tables from what is there

arms: {", ".join(ARMS)}
"""


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="ARM")


def plan(options: Namespace, base: Path) -> Plan:
    return Plan(narrowed(MODES[options.mode], options.only), base)


def missing() -> str | None:
    reason = model.missing()
    return reason and f"{reason}; pip install -e .[pretrained]"


CAMPAIGN = Campaign(
    name="pretrained",
    about=__doc__,
    example=EXAMPLE,
    full="about 5 hours of one core",
    runs="runs/pretrained",
    arguments=arguments,
    plan=plan,
    store=Store,
    execute=execute,
    summarise=lambda plan, store: plain(summarise(plan, store)),
    restored=restored,
    markdown=report.markdown,
    figures=plots.figures,
    missing=missing,
)
main = CAMPAIGN.main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
