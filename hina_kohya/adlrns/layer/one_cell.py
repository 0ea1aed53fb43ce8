"""A compressed model as a plain one: ordinary layers with the ranks and means of one cell, to compile or export."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .compressed import CompressedModel
from .module import DynamicLowRankLayer

_CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def one_cell(model: nn.Module, cell: int, rank: int | None = None) -> nn.Module:
    """A copy of a `CompressedModel`'s model, or of a `DynamicLowRankLayer`, as samples of one cell run through it.

    Each dynamic layer is two of torch's own, of the rank that the cell has at the present budget, or of ``rank``; one
    where two would cost more. Nothing in the copy scores, sorts or branches, so `torch.compile`, `torch.export` and
    ONNX take it, and it shares no memory. The copy of a layer alone gives the output, without the rank.

    cell : from 0, the simplest samples; `model.scorer.cell(x)` says which is a sample's. ``cells`` is that of samples
           without a finite score
    rank : of each layer, as far as it has so many; at least 1

    Raises ValueError for a cell or rank out of range, and a model without dynamic layers. Of
    layers that score their own input, each is taken in its own cell of that number.
    """
    inner = model.model if isinstance(model, CompressedModel) else model
    layers = {name: m for name, m in inner.named_modules() if isinstance(m, DynamicLowRankLayer)}
    if not layers:
        raise ValueError("the model has no DynamicLowRankLayer; compress() it first")
    most = min(layer.cells for layer in layers.values())
    if not 0 <= cell <= most:
        raise ValueError(f"cell = {cell} must be from 0 to {most}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank = {rank} must be at least 1")
    plain = {name: _plain(layer, cell, rank) for name, layer in layers.items()}
    if "" in plain:
        return plain[""]
    done = copy.deepcopy(inner)
    for name, layer in plain.items():
        parent, _, last = name.rpartition(".")
        own = layers[name].context is None  # then its model expects (output, rank)
        setattr(done.get_submodule(parent), last, WithRank(layer, _rank(layers[name], cell, rank)) if own else layer)
    return done.eval()


class WithRank(nn.Module):
    """(output, rank), as a dynamic layer gives them."""

    def __init__(self, layer: nn.Module, rank: int):
        super().__init__()
        self.layer, self.rank = layer, float(rank)

    def forward(self, x: Tensor) -> tuple[Tensor, float]:
        return self.layer(x), self.rank


def _rank(layer: DynamicLowRankLayer, cell: int, rank: int | None) -> int:
    return layer.plan()[cell] if rank is None else min(rank, layer.r_max)


@torch.no_grad()
def _plain(layer: DynamicLowRankLayer, cell: int, rank: int | None) -> nn.Module:
    r = _rank(layer, cell, rank)
    down, up = layer.down[:r].detach(), layer.up[:, :r].detach()
    shift = None if layer.shift is None else layer.shift[cell, :r].detach()
    bias = None if layer.bias is None else layer.bias[cell].detach()
    if r == 0 or r * layer.direction_macs >= layer.dense_macs:
        whole = bias if shift is None or bias is None else bias + up @ shift
        return _layer(layer, up @ down, whole, first=True)
    return nn.Sequential(_layer(layer, down, shift, first=True), _layer(layer, up, bias, first=False))


def _layer(like: DynamicLowRankLayer, weight: Tensor, bias: Tensor | None, first: bool) -> nn.Module:
    """A Linear or convolution of a weight [out, in * k]; only the ``first`` has the geometry."""
    where: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    if not like.dims:
        module: Any = nn.Linear(weight.shape[1], len(weight), **where)
    elif first:
        module = _CONVOLUTIONS[like.dims - 1](like.in_features, len(weight), like.kernel_size, **like.how, **where)
    else:
        module = _CONVOLUTIONS[like.dims - 1](weight.shape[1], len(weight), 1, **where)
    module.weight.copy_(weight.reshape(module.weight.shape))
    if bias is not None:
        module.bias.copy_(bias)
    return module
