"""Legs: what the gauge identity compares. Tensors only; nothing here waits for the device.

A parameter taken along one of its first two axes, U [r, rest], has the signature S = grad(U) U^T [r, r]. If two
parameters enter the model only through a contraction of these axes, R on one leg and R^-T on the other leave the loss
as it is, so S = S'^T. A [r, n] in W = B A is a leg along axis 0, B [m, r] one along axis 1; likewise the channel that
two convolutions share. Where only some R are allowed, only blocks on the diagonal agree: a block a head, and where
each channel may merely be scaled (dropout or ReLU between the two), the diagonal.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.bucket import CPU_CHUNK, GPU_CHUNK, to_device

SEED = 0x48696E61
COLUMNS = 32  # of the sketch that stands in for a larger signature
BLOCK_COLUMNS = 4  # for blocks, of which there are many
PROJECTIONS = 6
SMALL = 4  # signatures up to this wide are also looked up whole: all of so short a diagonal may cancel by chance

Params = Sequence[Tensor]
Grads = Sequence[Tensor | None]


class Leg(NamedTuple):
    """One parameter along one axis; with ``bias``, that vector is one more column of it."""

    param: int
    axis: int
    bias: int = -1


class Profiles(NamedTuple):
    """What one pass gives. ``scales`` is [N, 2]: <p, grad p> and ||p o grad p||, NaN without a gradient."""

    scales: Tensor
    legs: list[Leg]
    diagonals: list[Tensor]  # [r] of each leg's S
    wholes: list[tuple[Leg, Tensor]]  # upper half of S + S^T of those up to SMALL
    biases: list[tuple[int, Tensor]]  # parameter and b * grad b [r]


def profiles(params: Params, grads: Grads, legs: bool = True) -> Profiles:
    """Elementwise work, batched by shape."""
    device = params[0].device if params else torch.device("cpu")
    order: list[int] = []
    scales: list[Tensor] = []
    found = Profiles(torch.empty(0), [], [], [], [])
    for picked in _same_shape(params, grads):
        u, g = _stack(params, picked), _stack(grads, picked)  # [k, *shape]
        product = u * g
        order.extend(picked)
        flat = product.reshape(len(picked), -1)
        total, norm = flat.sum(1, dtype=torch.float64), torch.linalg.vector_norm(flat, dim=1).double()
        scales.append(torch.stack([total, norm], dim=1).to(device))
        shape = product.shape[1:]
        if legs and len(shape) == 1 and shape[0] > 1:
            found.biases.extend(zip(picked, product.unbind(0), strict=True))
        for axis in range(2) if legs and len(shape) > 1 else ():
            if shape[axis] > 1:
                found.legs.extend(Leg(index, axis) for index in picked)
                found.diagonals.extend(unfold(product, axis).sum(-1).unbind(0))
            if 1 < shape[axis] <= SMALL:
                found.wholes.extend(zip(found.legs[-len(picked) :], _upper(u, g, axis), strict=True))
    every = torch.full((len(params), 2), torch.nan, dtype=torch.float64, device=device)
    if order:
        every[_places(order, device)] = torch.cat(scales)
    return found._replace(scales=every)


def fingerprints(diagonals: Tensor) -> Tensor:
    """[L, 2 + PROJECTIONS] of diagonals [L, r]: log norm, then random projections and the trace of d / norm."""
    d = diagonals.double()
    norm = torch.linalg.vector_norm(d, dim=1, keepdim=True)
    unit = d / norm
    trace = unit.sum(1, keepdim=True) / d.shape[1] ** 0.5
    return torch.cat([norm.log(), unit @ _random(d.shape[1], PROJECTIONS, unit), trace], dim=1)


def residuals(pairs: Sequence[tuple[Leg, Leg]], params: Params, grads: Grads, heads: int = 1) -> Tensor:
    """[C, 2] of ||S - S'^T|| over the ``heads`` blocks on the diagonal (heads = r: the diagonal), divided two ways.

    By ||S|| + ||S'||, and by n + n' where that is more: S is a sum that cancels, and the norm n of its terms says how
    far rounding can move it.
    """
    groups: dict[object, list[int]] = defaultdict(list)
    for place, pair in enumerate(pairs):
        groups[tuple(_kind(leg, params) for leg in pair)].append(place)
    order: list[int] = []
    parts: list[Tensor] = []
    for places in groups.values():
        first, second = pairs[places[0]]
        device = params[first.param].device
        numel = max(params[first.param].numel(), params[second.param].numel())
        for picked in _runs(places, numel, device):
            left, terms = _signature([pairs[k][0] for k in picked], params, grads, heads, transposed=False)
            right, others = _signature([pairs[k][1] for k in picked], params, grads, heads, transposed=True)
            right, others = right.to(device), others.to(device)
            apart = (left - right).flatten(1).norm(dim=1)
            sizes = left.flatten(1).norm(dim=1) + right.flatten(1).norm(dim=1)
            parts.append((apart / torch.stack([torch.maximum(sizes, terms + others), sizes])).to(params[0].device))
            order.extend(picked)
    out = torch.empty(len(pairs), 2, dtype=torch.float64, device=params[0].device)
    if order:
        out[_places(order, out.device)] = torch.cat(parts, dim=1).T.double()
    return out


def _upper(u: Tensor, g: Tensor, axis: int) -> tuple[Tensor, ...]:
    signature = unfold(g, axis) @ unfold(u, axis).mT
    rows, columns = np.triu_indices(u.shape[1 + axis])
    return (signature + signature.mT)[:, _places(rows, u.device), _places(columns, u.device)].unbind(0)


def unfold(x: Tensor, axis: int) -> Tensor:
    """[k, *shape] -> [k, r, rest]."""
    return x.movedim(1 + axis, 1).flatten(2)


def _signature(
    legs: Sequence[Leg], params: Params, grads: Grads, heads: int, *, transposed: bool
) -> tuple[Tensor, Tensor]:
    """[k, heads, b, s]: the blocks of S, or of S^T, times s random columns; the blocks themselves while s = b.

    And [k]: the norm of all terms of these sums.
    """
    u, g = (_columns(legs, source).unflatten(1, (heads, -1)) for source in (params, grads))  # [k, heads, b, rest]
    left, right = (u, g) if transposed else (g, u)
    b, s = u.shape[2], COLUMNS if heads == 1 else BLOCK_COLUMNS
    # A squared sum: `norm` along an inner axis is 40 times slower.
    terms = ((u * u).sum(2) * (g * g).sum(2)).flatten(1).sum(1).sqrt()
    if b <= s:
        return left @ right.mT, terms
    return left @ (right.mT @ _random(b, s, u)), terms * s**0.5


def _columns(legs: Sequence[Leg], source: Sequence[Tensor | None]) -> Tensor:
    u = unfold(_stack(source, [leg.param for leg in legs]), legs[0].axis)
    if legs[0].bias < 0:
        return u
    return torch.cat([u, _stack(source, [leg.bias for leg in legs]).unsqueeze(-1).to(u.device)], dim=-1)


def _kind(leg: Leg, params: Params) -> object:
    return params[leg.param].shape, params[leg.param].dtype, params[leg.param].device, leg.axis, leg.bias < 0


def _same_shape(params: Params, grads: Grads) -> Iterator[list[int]]:
    """Indices of parameters with a gradient, in runs of one shape that fit the chunk limit."""
    groups: dict[object, list[int]] = defaultdict(list)
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        if grad is not None and param.numel():
            groups[param.shape, param.dtype, param.device].append(index)
    for indices in groups.values():
        yield from _runs(indices, params[indices[0]].numel(), params[indices[0]].device)


def _runs(places: Sequence[int], numel: int, device: torch.device) -> Iterator[list[int]]:
    rows = max(1, (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK) // numel)
    for start in range(0, len(places), rows):
        yield list(places[start : start + rows])


def _places(order: Sequence[int] | np.ndarray, device: torch.device) -> Tensor:
    return to_device(np.array(order, dtype=np.int64), device)


def _stack(source: Sequence[Tensor | None], picked: Sequence[int]) -> Tensor:
    x = torch.stack([source[index] for index in picked])  # type: ignore[misc]
    return x if x.dtype == torch.float64 else x.float()


def _random(rows: int, columns: int, like: Tensor) -> Tensor:
    """The same Gaussian [rows, columns] in every process and at every step."""
    generator = torch.Generator().manual_seed(SEED + rows)
    random = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return to_device(random.numpy(), like.device).to(like.dtype)
