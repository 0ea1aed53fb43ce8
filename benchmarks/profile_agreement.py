"""Whether `hina-kohya profile` and `benchmarks.step_cost` say the same: operations exactly, milliseconds within 10 %.

The two take turns, so that a busy moment hits both; what counts is the median over the rounds of their ratio. Exit code
1 where something disagrees.
"""

import argparse
import os
import statistics
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in `step_cost`

import torch

from benchmarks import step_cost
from hina_kohya.profile import profile, shapes

# name in step_cost -> name in a profile; on a GPU torch's AdamW takes lists by default
TORCH = "torch-foreach" if torch.cuda.is_available() else "torch-loop"
NAMES = {"hina-default-8bit": "HinaAdamW", TORCH: "torch AdamW", "bnb-adamw8bit": "bitsandbytes AdamW8bit"}
BOUND = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", default="sdxl-lora-r8", choices=sorted(shapes.SETS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: on a machine that does more")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = argparse.Namespace(set=options.set, only=[*NAMES], steps=options.steps, warmup=3, clock=options.clock)
    ratios: dict[str, list[float]] = {name: [] for name in NAMES}
    agree = True
    for _ in range(options.rounds):
        rows = {row["name"]: row for row in step_cost.run(settings, device)}
        result = profile(options.set, steps=options.steps)
        for theirs, ours in NAMES.items():
            row = result.row(ours)
            assert row.counts is not None
            own = row.ms if options.clock == "wall" else row.cpu_ms
            ratios[theirs].append(own / rows[theirs][f"{options.clock}_ms"])
            if row.counts.operations != rows[theirs]["operations"]:
                print(f"{ours}: {row.counts.operations} operations, {rows[theirs]['operations']} in step_cost")
                agree = False
    for theirs, ours in NAMES.items():
        median = statistics.median(ratios[theirs])
        listed = ", ".join(f"{ratio:.2f}" for ratio in ratios[theirs])
        print(f"{ours}: {median:.2f} times the {options.clock} ms of step_cost's {theirs} ({listed})")
        agree &= abs(median - 1) <= BOUND
    print("they agree" if agree else f"they differ by more than {100 * BOUND:.0f} %, or in operations")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
