"""What a step costs beside torch's AdamW where shapes are odd: one large weight, thousands of shapes, equal tensors."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

from benchmarks import measure
from hina_kohya import AdaptiveHinaAdamW, HinaAdamW

EXAMPLE = """example:
  python -m benchmarks.odd_shapes
"""
CPU = torch.device("cpu")
ROUNDS, LOOKS = 7, 4  # AdaptiveHinaAdamW looks for pairs at its steps 2 and 4
COLUMNS = {"case": "case", "ours": "ours, CPU ms", "torchs": "torch AdamW, CPU ms", "ratio": "ratio"}


def parameters(shapes: Sequence[tuple[int, int]]) -> list[Parameter]:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape).mul_(1e-2)) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param, requires_grad=False)
    return params


def milliseconds(step: Any) -> float:
    """The best of a few, in CPU time, after one that sets the state up."""
    step()
    return 1e3 * min(measure.timed(step, CPU)[1] for _ in range(ROUNDS))


def beside_torch(case: str, shapes: Sequence[tuple[int, int]], **options: Any) -> dict[str, Any]:
    params = parameters(shapes)
    named = [(f"layer{number}.weight", param) for number, param in enumerate(params)]
    ours = milliseconds(HinaAdamW(named, **options).step)
    torchs = milliseconds(torch.optim.AdamW(params, foreach=False).step)
    return {"case": case, "ours": ours, "torchs": torchs, "ratio": ours / torchs}


def look(count: int) -> dict[str, Any]:
    """The longest step of an optimizer that looks for pairs among tensors that all could be one."""
    optimizer = AdaptiveHinaAdamW(parameters([(8, 16)] * count))
    longest = max(measure.timed(optimizer.step, CPU)[1] for _ in range(LOOKS))
    return {
        "case": f"{count} tensors of 8 x 16 without names, AdaptiveHinaAdamW, step with a look",
        "ours": 1e3 * longest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    torch.set_num_threads(1)
    env = measure.environment(1, CPU)
    small = [(1 + i % 60, 1 + i // 60) for i in range(3000)]
    larger = [(8 + i % 60, 16 + i // 60) for i in range(3000)]
    rows = [
        beside_torch("one weight of 4,000 x 4,000, 8bit", [(4000, 4000)]),
        beside_torch("the same, fp32", [(4000, 4000)], state="fp32"),
        beside_torch("3,000 tensors of 3,000 shapes, 1 x 1 to 60 x 50", small),
        beside_torch("3,000 tensors of 3,000 shapes, 8 x 16 to 67 x 65", larger),
        look(10_000),
    ]
    markdown = "\n".join(
        [
            measure.heading("Odd shapes", env, shlex.join(["python", "-m", "benchmarks.odd_shapes", *sys.argv[1:]])),
            f"Default `HinaAdamW` beside `torch.optim.AdamW(foreach=False)`, fp32; best of {ROUNDS} steps.\n",
            measure.table(rows, COLUMNS),
        ]
    )
    print(markdown)
    measure.write("odd_shapes", {"env": env, "rows": rows}, markdown)


if __name__ == "__main__":
    main()
