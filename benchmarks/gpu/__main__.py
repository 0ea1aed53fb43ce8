"""Measures everything that wants a real GPU; each part in a process of its own, what fails is a row.

On a GPU: bash benchmarks/gpu.sh     (under ten minutes, writes benchmarks/results/gpu.md)
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.gpu import equality, steps, training
from benchmarks.gpu.rows import Part, Plan, Row, append, attempt, read
from hina_kohya.profile.recorder import ROOT

PARTS = {
    part.name: part
    for part in (
        Part("step", "time, kernels and memory of a step; medians of interleaved steps", 200, steps.run),
        Part("run", "the embedded trainer, 300 steps", 130, training.runs),
        Part("bypass", "LyCORIS, Linear 1280, 4,096 tokens, forward and backward", 60, training.forwards),
        Part("codes", "8-bit codes of the same numbers, this device against the CPU", 40, equality.codes),
        Part("equal", "ten steps, and a resume, of every class and codec", 90, equality.steps),
        Part("waits", "where torch raises with set_sync_debug_mode('error')", 60, equality.waits),
    )
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cpu tries the benchmark itself")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the benchmark itself")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART",
                        help=f"of: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--output", type=Path, default=measure.RESULTS / "gpu", help="file without its ending")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # of a part's own process
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    plan = Plan(torch.device(options.device), options.quick)
    if options.rows:
        for name in options.only:
            for row in PARTS[name].run(plan):
                append(options.rows, row)
        return 0
    if plan.device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False; --device cpu --quick tries the benchmark itself")
        return 2
    start, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            print(f"{name}: {PARTS[name].about}; at most {PARTS[name].seconds} s ...", flush=True)
            own = apart(PARTS[name], plan, Path(folder) / f"{name}.jsonl")
            rows += own
            for row in own:
                print(f"  {row.what}: {row.text or row.error}", flush=True)
    seconds = time.perf_counter() - start
    failures = sum(bool(row.error) for row in rows)
    write(rows, plan, seconds, options, argv)
    print(f"{len(rows)} rows, {failures} with an error, {seconds:.0f} s")
    return 1 if failures else 0


def apart(part: Part, plan: Plan, file: Path) -> list[Row]:
    """The rows of a part, run in a process of its own: one that hangs or loses the GPU keeps what it had."""
    words = ["--only", part.name, "--rows", str(file), "--device", str(plan.device)] + ["--quick"] * plan.quick
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    try:
        run = subprocess.run(command, cwd=ROOT, timeout=part.seconds, stderr=subprocess.PIPE, text=True, check=False)
    except subprocess.TimeoutExpired:
        return [*read(file), Row(part.name, "the rest", error=f"stopped after {part.seconds} s")]
    if run.returncode:
        last = run.stderr.strip().splitlines()[-1:]
        return [*read(file), Row(part.name, "the rest", error=f"exit code {run.returncode}: {' '.join(last)[:200]}")]
    return read(file)


def write(rows: list[Row], plan: Plan, seconds: float, options: argparse.Namespace, argv: Sequence[str]) -> None:
    env = measure.environment(torch.get_num_threads(), plan.device)
    env.update(load_average=0.0, quick=plan.quick, seconds=round(seconds), cuda=torch.version.cuda)
    env["memory"] = attempt("", "", lambda: (f"{torch.cuda.mem_get_info(plan.device)[1] / 2**30:.0f} GiB", {})).text
    failures = [row for row in rows if row.error]
    lines = [
        measure.heading("On a real GPU", env, shlex.join(["bash", "benchmarks/gpu.sh", *argv])),
        *(["**Quick: tiny sizes, so the figures mean nothing.**\n"] if plan.quick else []),
        f"CUDA {env['cuda']}, {env['memory'] or 'no GPU memory'}; {seconds:.0f} s; {len(rows)} rows, "
        f"{len(failures)} errors. "
        + "; ".join(f"{part.name}: {part.about}" for part in PARTS.values() if part.name in options.only)
        + ".\n",
        measure.table(
            [{"part": row.part, "what": row.what, "result": row.text or f"**error** {row.error}"} for row in rows],
            {"part": "part", "what": "what", "result": "result"},
        ),
    ]
    content = {"env": env, "rows": [vars(row) for row in rows]}
    measure.write(options.output.name, content, "\n".join(lines), options.output.parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
