"""Steps every class, codec, switch and option on a pretended GPU; fails on a mix-up of devices and on a wait."""

import argparse
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks import measure
from benchmarks.fake_cuda import cases, costs
from benchmarks.fake_cuda.life import KNOWN, Verdict, live, quiet
from hina_kohya.core import registry

EXAMPLE = """examples:
  bash scripts/fake_cuda.sh                                  makes its own venv with torch's CUDA build
  bash scripts/fake_cuda.sh --only 'COptim, 8bit' --no-costs  cases whose description holds this text
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "fake_cuda", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose description holds this text")
    parser.add_argument("--no-costs", action="store_true", help="no table of launches and bytes")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: cores)")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    options, start = parse(argv), time.perf_counter()
    selection = [case for case in cases.cases() if options.only in str(case)]
    if not selection:
        print(f"no case holds {options.only!r}", file=sys.stderr)
        return 2
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), quiet) as pool:
        pairs = [] if options.no_costs else [(s.name, name) for name in costs.SETS for s in costs.subjects()]
        pending = [pool.submit(costs.cost, *each) for each in pairs]
        verdicts: list[Verdict] = []
        for verdict in pool.map(live, selection):
            verdicts.append(verdict)
            progress = f"{len(verdicts)} of {len(selection)} cases, {len(failed(verdicts))} with faults"
            print(f"\r{progress}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        rows = [row.result() for row in pending]
    problems = failed(verdicts)
    stale = [] if options.only else [entry.why for entry in KNOWN if not _used(entry.why, verdicts)]
    for line in problems:
        print(line)
    for why in stale:
        print(f"listed as known, but nothing did it: {why}")
    steps = sum(len(verdict.phases) for verdict in verdicts)
    print(f"{len(verdicts)} cases, {steps} phases, {len(problems)} faults, {time.perf_counter() - start:.0f} s")
    if not options.only and not options.no_costs:
        write(verdicts, rows, problems, argv)
    return 1 if problems or stale else 0


def failed(verdicts: Sequence[Verdict]) -> list[str]:
    return [
        f"{verdict.case}; {phase}: {fault.kind}: {fault}" for verdict in verdicts for phase, fault in verdict.faults
    ]


def _used(why: str, verdicts: Sequence[Verdict]) -> bool:
    return any(entry.why == why for verdict in verdicts for _, entry, _ in verdict.known)


def write(verdicts: Sequence[Verdict], rows: list[dict[str, Any]], problems: list[str], argv: Sequence[str]) -> None:
    env = measure.environment(1, torch.device("cpu"))
    env.update(load_average=0.0, device="a pretended CUDA device")  # time is not measured
    reasons = [
        {"why": why, "cases": len({str(v.case) for v, _ in pairs}), "most": max(most for _, most in pairs)}
        for why, pairs in _known(verdicts).items()
    ]
    techniques = sorted({t for verdict in verdicts for t in verdict.techniques})
    phases = Counter(phase for verdict in verdicts for phase in verdict.phases)
    markdown = "\n".join(
        [
            measure.heading("On a GPU that is not there", env, shlex.join(["bash", "scripts/fake_cuda.sh", *argv])),
            "torch's `FakeTensorMode`, device `cuda`, no GPU: devices, waits, operations, launches and bytes are those "
            "of a GPU, values and times are not there.\n",
            f"**{len(verdicts)} cases**: every class, codec and dtype, every switch, preset, profile and every option "
            f"of {len(techniques)} of {len(registry.techniques())} techniques, one at a time, on "
            f"{len(cases.SHAPES)} parameters of every kind. Phases, with the number of cases: "
            + ", ".join(f"{phase} {count}" for phase, count in phases.items())
            + ". "
            f"**{len(problems)} faults** (host waits for the device, operations on the host, devices mixed up, state "
            "that does not lie where its parameter does).\n",
            *[f"- {line}" for line in problems],
            "Known and listed, not counted as faults:\n",
            measure.table(reasons, {"why": "what waits, and why", "cases": "cases", "most": "most in one step"}),
            "\n## A step\n",
            "Median steps, not first ones. Launches follow torch's own rules for lists of tensors and `cat`; a "
            "decomposition counts as one. Bytes are what every operation reads and writes if nothing stays in a cache. "
            "A wait stops the host until the device has done all work before it; pinned, asynchronous copies do not.\n",
            measure.table(rows, costs.COLUMNS),
        ]
    )
    measure.write("fake_cuda", {"env": env, "known": reasons, "faults": problems, "rows": rows}, markdown)


def _known(verdicts: Sequence[Verdict]) -> dict[str, list[tuple[Verdict, int]]]:
    result: dict[str, list[tuple[Verdict, int]]] = {}
    for verdict in verdicts:
        for why in {entry.why for _, entry, _ in verdict.known}:
            steps = Counter(phase for phase, entry, _ in verdict.known if entry.why == why)
            result.setdefault(why, []).append((verdict, max(steps.values())))
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
