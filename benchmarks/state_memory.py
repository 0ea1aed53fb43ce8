"""Bytes an optimizer keeps between steps, per parameter: counted from outside, over everything it allocates."""

import argparse
import gc
import shlex
import sys
from typing import Any

import numpy as np
import torch

from benchmarks import candidates, measure, shapes

EXAMPLE = """example:
  python -m benchmarks.state_memory --set sdxl-lora-r8 sdxl-lokr-f8-d8 --only hina-all-8bit bnb-adamw8bit
"""
STEPS = 3
COLUMNS = {
    "set": "set",
    "name": "optimizer",
    "bytes_per_parameter": "bytes / parameter",
    "tensor_bytes": "tensors",
    "numpy_bytes": "numpy",
    "reported": "own report",
}


def held() -> list[Any]:
    """Every tensor and numpy array reachable in this process, but for what `gc.freeze` hides."""
    gc.collect()
    objects = gc.get_objects()
    everything = [*objects, *gc.get_referents(*objects)]  # numpy arrays are not tracked, what holds them is
    return [each for each in everything if type(each) in (torch.Tensor, torch.nn.Parameter, np.ndarray)]


def sizes(objects: list[Any]) -> tuple[dict[int, int], dict[int, int]]:
    """(bytes of every tensor storage by address, bytes of every numpy array by id)"""
    tensors: dict[int, int] = {}
    arrays: dict[int, int] = {}
    for each in objects:
        if type(each) is not np.ndarray:
            storage = each.untyped_storage()
            tensors[storage.data_ptr()] = storage.nbytes()
        elif each.base is None:
            arrays[id(each)] = each.nbytes
    return tensors, arrays


def alive() -> tuple[dict[int, int], dict[int, int]]:
    """`sizes` of what is reachable now."""
    return sizes(held())


def state_of(name: str, set_name: str, device: torch.device) -> dict[str, Any]:
    named = shapes.make(set_name, device)
    for _, param in named:
        param.grad = torch.randn_like(param, requires_grad=False).mul_(1e-3)
    tensors_before, arrays_before = alive()
    optimizer = candidates.CANDIDATES[name](named)
    for _ in range(STEPS):
        optimizer.step()
    tensors, arrays = alive()
    tensor_bytes = sum(size for address, size in tensors.items() if address not in tensors_before)
    numpy_bytes = sum(size for key, size in arrays.items() if key not in arrays_before)
    count = sum(param.numel() for _, param in named)
    report = getattr(optimizer, "get_memory_efficiency_report", None)
    return {
        "set": set_name,
        "name": name,
        "parameters": count,
        "tensor_bytes": tensor_bytes,
        "numpy_bytes": numpy_bytes,
        "bytes_per_parameter": (tensor_bytes + numpy_bytes) / count,
        "reported": report()["bytes_per_parameter"] if report else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_sets = [
        "sdxl-lora-r4",
        "sdxl-lora-r8",
        "sdxl-lora-r16",
        "sdxl-lokr-f8-d8",
        "embedded-lora",
        "embedded-lokr",
    ]
    parser.add_argument("--set", nargs="+", default=default_sets, choices=sorted(shapes.SETS), metavar="SET",
                        help=f"of: {', '.join(shapes.SETS)}")  # fmt: skip
    parser.add_argument("--only", nargs="+", default=candidates.MAIN, choices=sorted(candidates.CANDIDATES),
                        metavar="NAME", help=f"of: {', '.join(candidates.CANDIDATES)}")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", default="state_memory", help="name of the files in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    rows = []
    for set_name in options.set:
        for name in options.only:
            rows.append(state_of(name, set_name, device))
            print(f"{set_name:20} {name:24} {rows[-1]['bytes_per_parameter']:.3f}", file=sys.stderr, flush=True)
    env = measure.environment(options.threads, device)
    env["load_average"] = 0.0  # says nothing about bytes
    command = shlex.join(["python", "-m", "benchmarks.state_memory", *sys.argv[1:]])
    markdown = "\n".join(
        [
            measure.heading("State between steps", env, command),
            f"Everything alive after {STEPS} steps that was not before: tensors by storage, and numpy arrays.\n",
            measure.table(rows, COLUMNS),
        ]
    )
    print(markdown)
    measure.write(options.output, {"env": env, "rows": rows}, markdown)


if __name__ == "__main__":
    main()
