"""The parameter sets of `hina_kohya.profile.shapes` as tensors, and those of the embedded trainer.

``embedded-lora``, ``embedded-lokr``: the adapter of the embedded trainer, made by LyCORIS itself.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hina_kohya.profile import shapes

Named = list[tuple[str, Tensor]]


def _empty(make_shapes: Callable[[], shapes.Shapes]) -> Named:
    return [(name, torch.empty(shape)) for name, shape in make_shapes()]


def embedded(algo: str) -> Named:
    from benchmarks.digits import Run  # noqa: PLC0415

    return [(name, torch.empty_like(p)) for name, p in Run(algo).network.named_parameters() if p.requires_grad]


SETS: dict[str, Callable[[], Named]] = {
    **{name: partial(_empty, make_shapes) for name, make_shapes in shapes.SETS.items()},
    "embedded-lora": partial(embedded, "lora"),
    "embedded-lokr": partial(embedded, "lokr"),
}


def make(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Named:
    """The set with random values, as after some training: no factor is zero."""
    generator = torch.Generator().manual_seed(seed)
    made: Named = []
    for parameter_name, empty in SETS[name]():
        values = torch.randn(empty.shape, generator=generator).mul_(0.02).to(device, dtype)
        made.append((parameter_name, values.requires_grad_()))
    return made


def describe(named: Named) -> dict[str, int]:
    return {
        "parameters": sum(p.numel() for _, p in named),
        "tensors": len(named),
        "shapes": len({p.shape for _, p in named}),
    }
