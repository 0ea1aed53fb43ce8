"""What one optimizer step costs: operations, host synchronisations, time and temporary memory."""

import argparse
import os
import shlex
import sys
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # else idle threads of one candidate slow down the next

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import candidates, measure, shapes
from hina_kohya.profile.recorder import Recorder

EXAMPLE = """examples:
  python -m benchmarks.step_cost --set sdxl-lora-r8 --threads 2
  python -m benchmarks.step_cost --set sdxl-lokr-f8-d8 --only hina-all-8bit bnb-adamw8bit --steps 20
  python -m benchmarks.step_cost --profile hina-default-8bit
"""

COLUMNS = {
    "name": "optimizer",
    "wall_ms": "wall ms",
    "wall_iqr": "IQR",
    "cpu_ms": "CPU ms",
    "operations": "operations",
    "views": "views",
    "syncs": "host syncs",
    "peak_mib": "peak temporary MiB",
    "to_bnb": "x bnb 8-bit",
    "to_adv": "x adv_optm",
    "to_foreach": "x torch foreach",
}


class Subject:
    """One candidate with parameters of its own, so that no other's step leaves them in cache."""

    def __init__(self, name: str, named: shapes.Named, gradients: list[torch.Tensor]):
        self.name, self.device = name, gradients[0].device
        own = [(n, p.detach().clone().requires_grad_()) for n, p in named]
        for (_, param), gradient in zip(own, gradients, strict=True):
            param.grad = gradient  # shared: no candidate writes into it
        self.optimizer = candidates.CANDIDATES[name](own)
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def time_step(self) -> None:
        wall, cpu = measure.timed(self.optimizer.step, self.device)
        self.wall.append(wall)
        self.cpu.append(cpu)

    def count(self) -> Recorder:
        with Recorder(self.device) as recorder:
            self.optimizer.step()
        return recorder

    def row(self) -> dict[str, Any]:
        recorder = self.count()
        wall, cpu = measure.spread(self.wall), measure.spread(self.cpu)
        return {
            "name": self.name,
            "wall_ms": wall["median"],
            "wall_iqr": wall["iqr"],
            "cpu_ms": cpu["median"],
            "cpu_iqr": cpu["iqr"],
            "operations": recorder.operations.total(),
            "views": recorder.views,
            "syncs": recorder.waits,
            "peak_mib": round(measure.peak_bytes(self.optimizer.step, self.device) / 2**20, 1),
            "top_operations": dict(recorder.operations.most_common(12)),
        }


def fresh_gradients(gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        gradient.normal_(std=1e-3)


def run(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    # A training process has freed activations of this size, after which glibc reuses large blocks instead of giving
    # them back page by page. Without it torch foreach and every optimizer with large temporaries measure page faults.
    torch.empty(31 << 20, dtype=torch.uint8)
    named = shapes.make(options.set, device)
    gradients = [torch.empty_like(p, requires_grad=False) for _, p in named]
    rows: list[dict[str, Any]] = []
    for names in _batches(options.only, room(named, device)):
        batch = _measure([Subject(name, named, gradients) for name in names], gradients, options)
        _relate(batch, f"{options.clock}_ms")
        rows += [row for row in batch if row["name"] not in {known["name"] for known in rows}]
    return rows


def room(named: shapes.Named, device: torch.device) -> int:
    """How many subjects may be alive at a time: parameter and fp32 state of each, in half of the free memory."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(4, int(free / 2 / (12 * sum(p.numel() for _, p in named))))


def _batches(names: list[str], room: int) -> list[list[str]]:
    """Runs of names; what the ratios refer to is in every one, so that each ratio is of one run."""
    yardsticks = [name for name in names if name in candidates.YARDSTICKS.values()]
    others = [name for name in names if name not in yardsticks]
    size = max(1, room - len(yardsticks))
    return [yardsticks + others[i : i + size] for i in range(0, max(1, len(others)), size)]


def _measure(
    subjects: list[Subject], gradients: list[torch.Tensor], options: argparse.Namespace
) -> list[dict[str, Any]]:
    for number in range(options.warmup + options.steps):
        for gradient in gradients:
            gradient.normal_(std=1e-3)
        for subject in subjects:
            if number < options.warmup:
                subject.optimizer.step()
            else:
                subject.time_step()
        print(f"\rround {number + 1} of {options.warmup + options.steps}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    rows = []
    for subject in subjects:
        rows.append(subject.row())
        print(f"  {subject.name:36} {rows[-1]['wall_ms']:10.2f} ms", file=sys.stderr)
    return rows


def _relate(rows: list[dict[str, Any]], clock: str) -> None:
    base = {row["name"]: row[clock] for row in rows}
    for row in rows:
        for key, other in candidates.YARDSTICKS.items():
            if other in base:
                row[key] = round(row[clock] / base[other], 3)


def print_profile(options: argparse.Namespace, device: torch.device) -> None:
    named = shapes.make(options.set, device)
    gradients = [torch.randn_like(p, requires_grad=False).mul_(1e-3) for _, p in named]
    subject = Subject(options.profile, named, gradients)
    for _ in range(options.warmup):
        subject.optimizer.step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(options.steps):
            subject.optimizer.step()
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=30, max_name_column_width=40))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", default="sdxl-lora-r8", choices=sorted(shapes.SETS), help="parameters to step")
    parser.add_argument(
        "--only", nargs="+", default=list(candidates.CANDIDATES), choices=sorted(candidates.CANDIDATES), metavar="NAME",
        help=f"optimizers to measure, of: {', '.join(candidates.CANDIDATES)}",
    )  # fmt: skip
    parser.add_argument("--main", action="store_true", help="the other libraries and HinaAdamW off, default and all")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each (default 15)")
    parser.add_argument("--warmup", type=int, default=3, help="steps before (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="what the ratios are made of")
    parser.add_argument("--output", help="name of the files in benchmarks/results (default step_cost_SET)")
    parser.add_argument(
        "--profile", metavar="NAME", choices=sorted(candidates.CANDIDATES), help="print where time goes"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.profile:
        print_profile(options, device)
        return
    if options.main:
        options.only = candidates.MAIN
    env = measure.environment(options.threads, device)
    rows = run(options, device)
    about = shapes.describe(shapes.make(options.set))
    markdown = "\n".join(
        [
            measure.heading(
                f"Cost of a step: {options.set}",
                env,
                shlex.join(["python", "-m", "benchmarks.step_cost", *sys.argv[1:]]),
            ),
            f"{about['parameters']:,} parameters in {about['tensors']} tensors of {about['shapes']} shapes, fp32; "
            f"median of {options.steps} interleaved steps. Ratios are of {options.clock} time.\n",
            measure.table(rows, COLUMNS),
        ]
    )
    print(markdown)
    measure.write(options.output or f"step_cost_{options.set}", {"env": env, "set": about, "rows": rows}, markdown)


if __name__ == "__main__":
    main()
