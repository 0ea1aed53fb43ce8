"""The command line that the benchmarks share."""

import argparse
import os
import sys
from pathlib import Path

from benchmarks import measure


def parser(name: str, about: str | None, example: str, full: str, runs: str) -> argparse.ArgumentParser:
    """full: help of --full; runs: where finished runs are kept by default."""
    made = argparse.ArgumentParser(
        f"benchmarks.{name}", description=about, epilog=example, formatter_class=argparse.RawTextHelpFormatter
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument("--quick", dest="mode", action="store_const", const="quick", help="at most 5 minutes; default")
    which.add_argument("--full", dest="mode", action="store_const", const="full", help=full)
    what = made.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="number of runs and estimated time; trains nothing")
    what.add_argument("--report", action="store_true", help="only write the results of the finished runs")
    what.add_argument("--redraw", action="store_true", help="write tables and pictures again from NAME.json, no runs")
    made.add_argument("--minutes", type=float, help="start no run after so many minutes (0: no limit)")
    made.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes of one thread each")
    made.add_argument("--runs", type=Path, default=Path(runs), help="where finished runs are kept")
    made.add_argument("--name", help=f"of the results; {name}_MODE by default")
    made.add_argument("--results", type=Path, default=measure.RESULTS)
    made.add_argument("--rerun-stale", action="store_true", help="make runs again that other code of ours made")
    made.set_defaults(mode="quick")
    return made


def complain(failed: dict[str, str]) -> int:
    """The exit code, with what failed on stderr."""
    for failure in failed.values():
        print(f"failed: {failure}", file=sys.stderr)
    return int(bool(failed))
