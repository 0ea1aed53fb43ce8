r"""Relationships between parameters, found without names by the gauge identity.

.. math:: W = B A: \quad \nabla_A A^T = B^T \nabla_B, \qquad
          W = A \otimes B, A \odot B: \quad \langle A, \nabla_A \rangle = \langle B, \nabla_B \rangle

Both are linear in the gradient, so accumulation, averaging over ranks and clipping leave them true, and exact for
the parameters at which the gradient was taken: look before the step. Both say 0 = 0 while a factor is zero.

Source: TECHNIQUES.md, "the gauge identity"; Noether's theorem for the symmetry (A, B) -> (R A, B R^-1).
Cost: one elementwise pass over all parameters, a sort of fingerprints, r x r products of the candidates. It waits for
a GPU about a dozen times (benchmarks/results/fake_cuda.md): call it every hundred steps. `observe` never waits.
"""

import dataclasses as dc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hina_kohya.discovery import match
from hina_kohya.discovery.legs import Grads, Leg, Params, Profiles, fingerprints, profiles, residuals

# How much rougher than the worst matrix a true scalar may be, and what fp32 alone explains.
ROUGHER, EXPLAINED = 30.0, 1e-5
COMPOSITES = 1 << 18  # a leg with a bias is tried up to this many combinations of a length


@dc.dataclass(frozen=True)
class Relationship:
    """Two parameters, by index, and the identity that ties them.

    interaction_type: ``product`` W = B A, with ``param`` B (its axis 1) and ``partner`` A (its axis 0); ``bilinear``
                      the same along equal axes, as query and key; either ``per head`` where only blocks agree;
                      ``channel`` where each channel may only be scaled (dropout or ReLU between, Hadamard products);
                      ``scale`` the scalar form, for Kronecker factors
    compatibility   : 1 - residual of that identity
    heads           : blocks on the diagonal that agree
    bias            : the bias that belongs to ``partner``'s (or, in ``bilinear``, either's) layer
    """

    param: int
    partner: int
    interaction_type: str
    compatibility: float
    axis: int | None = None
    partner_axis: int | None = None
    heads: int = 1
    bias: int | None = None


@torch.no_grad()
def observe(params: Params, grads: Grads) -> Tensor:
    """[N, 2] of <p, grad p> and ||p o grad p||, on the device: what a later `discover` wants of this step.

    One row a parameter, NaN without a gradient.
    """
    return profiles(params, grads, legs=False).scales


@torch.no_grad()
def discover(
    params: Params, grads: Grads, earlier: Sequence[Tensor] = (), compatibility_threshold: float = 0.3
) -> list[Relationship]:
    """All relationships that this step's gradients, and what `observe` gave at ``earlier`` steps, make certain.

    A relationship counts if its residual is at most ``compatibility_threshold`` times that of the next best
    candidate, and never above a tenth of it; parameters that look alike are left alone. One step is enough for
    matrices. The scalar form compares one number a step: in fp32 one step does, in bf16 two where Kronecker modules
    come in numbers, and three or four where there are few.
    """
    seen = profiles(params, grads)
    found = _legs(seen, params, grads, compatibility_threshold)
    looks = torch.stack([*(look.to(seen.scales) for look in earlier), seen.scales], dim=1)
    return found + _scales(params, looks.cpu().numpy(), found, compatibility_threshold)


def _legs(seen: Profiles, params: Params, grads: Grads, bound: float) -> list[Relationship]:
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, diagonal in enumerate(seen.diagonals):
        by_length[len(diagonal)].append(place)
    tables = {
        length: (
            [seen.legs[k] for k in places],
            torch.stack([seen.diagonals[k].to(seen.scales.device) for k in places]),
        )
        for length, places in by_length.items()
    }
    small: dict[int, list[tuple[Leg, Tensor]]] = defaultdict(list)
    for leg, whole in seen.wholes:
        small[len(whole)].append((leg, whole))
    wholes = [
        ([leg for leg, _ in rows], torch.stack([row.to(seen.scales.device) for _, row in rows]))
        for rows in small.values()
    ]
    found = _confirmed(tables, wholes, params, grads, bound)
    taken = {(r.param, r.axis) for r in found} | {(r.partner, r.partner_axis) for r in found}
    return found + _confirmed(_with_biases(seen, tables, taken), [], params, grads, bound)


Table = tuple[list[Leg], Tensor]
Tables = dict[int, Table]


def _with_biases(seen: Profiles, tables: Tables, taken: set[tuple[int, int | None]]) -> Tables:
    """Legs that found nobody, also with each bias of their length: the bias of a layer is a column of its weight."""
    biases: dict[int, list[tuple[int, Tensor]]] = defaultdict(list)
    for index, product in seen.biases:
        biases[len(product)].append((index, product))
    combined = {}
    for length, (legs, diagonals) in tables.items():
        free = [k for k, leg in enumerate(legs) if leg[:2] not in taken]
        outer = [k for k in free if legs[k].axis == 0]
        if biases[length] and len(free) > 1 and len(outer) * len(biases[length]) <= COMPOSITES:
            added = torch.stack([product.to(diagonals) for _, product in biases[length]])
            rows = [diagonals[free], (diagonals[outer].unsqueeze(1) + added).flatten(0, 1)]
            names = [legs[k]._replace(bias=index) for k in outer for index, _ in biases[length]]
            combined[length] = [legs[k] for k in free] + names, torch.cat(rows)
    return combined


def _confirmed(
    tables: Tables, wholes: Sequence[Table], params: Params, grads: Grads, bound: float
) -> list[Relationship]:
    pairs = _candidates([*tables.values(), *wholes])
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, (leg, _) in enumerate(pairs):
        by_length[params[leg.param].shape[leg.axis]].append(place)
    ties: list[tuple[int, int, float]] = []  # pair, blocks at least, residual
    whole, diagonal = _both_residuals(pairs, by_length, params, grads)
    for length, places in by_length.items():
        taken: set[tuple[int, int]] = set()
        ends = {k: (pairs[k][0][:2], pairs[k][1][:2]) for k in places}
        for values, heads in ((whole, 1), (diagonal, length)):
            free = [k for k in places if taken.isdisjoint(ends[k])]
            chosen = match.accept(
                [ends[k] for k in free],
                [values[k][0] for k in free],
                [min(1.0, 2 * values[k][1]) ** (length**2 // heads) for k in free],
                len(tables[length][0]) - len(taken),
                bound,
            )
            for k in (free[c] for c in chosen):
                taken.update(ends[k])
                ties.append((k, heads, values[k][0]))
    blocks = _heads([pairs[k] for k, heads, _ in ties if heads > 1], params, grads, bound)
    return [_relationship(*pairs[k], next(blocks) if heads > 1 else 1, residual, params) for k, heads, residual in ties]


def _both_residuals(
    pairs: Sequence[tuple[Leg, Leg]], by_length: dict[int, list[int]], params: Params, grads: Grads
) -> list[list[list[float]]]:
    """Residuals of whole signatures and of their diagonals, each over its terms and over its size."""
    if not pairs:
        return [[], []]
    diagonal = torch.empty(len(pairs), 2, dtype=torch.float64, device=params[0].device)
    for length, places in by_length.items():
        diagonal[places] = residuals([pairs[k] for k in places], params, grads, heads=length)
    return torch.stack([residuals(pairs, params, grads), diagonal]).tolist()


def _candidates(tables: Sequence[Table]) -> list[tuple[Leg, Leg]]:
    if not tables:
        return []
    prints = torch.cat([fingerprints(rows) for _, rows in tables]).cpu().numpy()
    pairs, start = [], 0
    for legs, _ in tables:
        own = prints[start : start + len(legs)]
        start += len(legs)
        owners = np.array([leg.param for leg in legs])
        found = match.candidates(own, owners)
        pairs += [(legs[i], legs[j]) for i, j in found.tolist() if min(legs[i].bias, legs[j].bias) < 0]
    return list(dict.fromkeys(pairs))


def _heads(pairs: Sequence[tuple[Leg, Leg]], params: Params, grads: Grads, bound: float) -> Iterator[int]:
    """For each pair whose diagonals agree, the fewest blocks on the diagonal that do."""
    lengths = [params[leg.param].shape[leg.axis] for leg, _ in pairs]
    tried: list[tuple[int, list[int], Tensor]] = []
    for heads in range(2, max(lengths, default=0) // 2 + 1):
        places = [k for k, length in enumerate(lengths) if length % heads == 0 and length > heads]
        if places:
            tried.append((heads, places, residuals([pairs[k] for k in places], params, grads, heads)[:, 0]))
    values = torch.cat([values for _, _, values in tried]).tolist() if tried else []
    fewest = list(lengths)
    trials = [(k, heads) for heads, places, _ in tried for k in places]
    for (k, heads), value in zip(trials, values, strict=True):
        if value <= bound * match.SIGHT:
            fewest[k] = min(fewest[k], heads)
    return iter(fewest)


def _relationship(first: Leg, second: Leg, heads: int, residual: float, params: Params) -> Relationship:
    if first.axis < second.axis:
        first, second = second, first
    kind = "product" if first.axis != second.axis else "bilinear"
    if heads > 1:
        kind = "channel" if heads == params[first.param].shape[first.axis] else f"{kind} per head"
    bias = max(first.bias, second.bias)
    return Relationship(
        first.param, second.param, kind, 1 - residual, first.axis, second.axis, heads, None if bias < 0 else bias
    )


def _scales(params: Params, looks: np.ndarray, found: Sequence[Relationship], bound: float) -> list[Relationship]:
    """The scalar form between what is not tied yet: parameters, or products of them, which share one value."""
    units = list(units_of(roots(len(params), found)).values())
    units = [unit for unit in units if any(params[i].dim() > 1 and params[i].numel() > 1 for i in unit)]
    # Matrices were told apart by many numbers: their residuals say how exact the gradients of this run are.
    rough = max((1 - r.compatibility for r in found), default=1.0)
    limit = max(EXPLAINED, ROUGHER * rough)
    return [
        _scalar(a, b, params, 1 - residual)
        for i, j, residual in match.equal(*_of_units(units, looks), limit, bound)
        for a in units[i]
        for b in units[j]
    ]


def _of_units(units: Sequence[Sequence[int]], looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean value of each unit at each look [U, T] and the norm of what it sums; NaN where nothing was seen."""
    seen = np.isfinite(looks).min(axis=2)
    values, squares = (np.where(seen, looks[..., 0], 0.0), np.where(seen, looks[..., 1], 0.0) ** 2)
    sums = np.array([[x[unit].sum(axis=0) for x in (seen, values, squares)] for unit in units])
    count, value, square = np.moveaxis(sums.reshape(len(units), 3, looks.shape[1]), 1, 0)
    with np.errstate(invalid="ignore"):
        return value / count, np.sqrt(square) / count


def _scalar(first: int, second: int, params: Params, compatibility: float) -> Relationship:
    """A column times a row is a product of rank 1, whose signature is one number."""
    for b, a in ((first, second), (second, first)):
        if params[b].dim() > 1 and params[b].shape[1:].numel() == 1 == params[a].shape[0] < params[a].numel():
            return Relationship(b, a, "product", compatibility, 1, 0)
    return Relationship(first, second, "scale", compatibility)


def roots(count: int, edges: Iterable[Relationship]) -> list[int]:
    """For each of ``count`` parameters, the least index of those it is tied to, directly or not."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for r in edges:
        low, high = sorted((root(r.param), root(r.partner)))
        parent[high] = low
    return [root(i) for i in range(count)]


def units_of(root: Sequence[int]) -> dict[int, list[int]]:
    """Parameters by their root."""
    units: dict[int, list[int]] = defaultdict(list)
    for index, first in enumerate(root):
        units[first].append(index)
    return units
