"""Measure, train, compare. Stop it at any point; the same command goes on."""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism, and layers are timed on one thread
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.campaign.runner import Campaign

from . import methods, patches, plots, report
from .execution import execute
from .plan import MODES, PARTS, Plan, narrowed
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


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods")
    parser.add_argument("--data", nargs="+", metavar="D", help="these widths of patch networks or numbers of images")


def plan(options: Namespace, base: Path) -> Plan:
    return Plan(narrowed(MODES[options.mode], options.parts, options.only, options.data), base.parent)


CAMPAIGN = Campaign(
    name="adlrns",
    about=__doc__,
    example=EXAMPLE,
    full="about 2 hours on 2 cores",
    runs="runs/adlrns-benchmark",
    arguments=arguments,
    plan=plan,
    store=Store,
    execute=execute,
    summarise=summarise,
    restored=lambda content: content,
    markdown=report.markdown,
    figures=plots.figures,
)
main = CAMPAIGN.main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
