"""One water level for all directions: keep what gains more per cost than the level, and no more than the budget.

The level is the Lagrange multiplier of `min loss subject to mean cost <= budget`; for additive gains the result is the
best there is at its own cost. A pure function: the same gains give the same directions on every rank.
"""

import dataclasses as dc
import math

import torch
from torch import Tensor


@dc.dataclass(frozen=True)
class Allocation:
    """kept: [K, L, R] bool, directions of layer l in state k; level: gain per cost; cost: mean over the states."""

    kept: Tensor
    level: float
    cost: float

    @property
    def ranks(self) -> Tensor:
        """[K, L]"""
        return self.kept.sum(-1)


def nested(gain: Tensor) -> Tensor:
    """The gains [..., R] with which every kept set is a prefix: a direction is worth what the best after it is."""
    return gain.flip(-1).cummax(-1).values.flip(-1)


def isotonic(gain: Tensor) -> Tensor:
    """The falling sequence nearest to the gains [K, R]: each is worth the mean of the best prefix that it is in.

    Its sums are the upper concave hull of the sums of the gains. Source: pool adjacent violators (Ayer et al., 1955).
    """
    rows = []
    for row in gain.double().tolist():
        blocks: list[tuple[float, int]] = []  # mean, count
        for value in row:
            mean, count = value, 1
            while blocks and blocks[-1][0] < mean:
                before, size = blocks.pop()
                mean, count = (mean * count + before * size) / (count + size), count + size
            blocks.append((mean, count))
        rows.append([mean for mean, count in blocks for _ in range(count)])
    return torch.tensor(rows, dtype=torch.float64).view(gain.shape)


def prefixes(gain: Tensor, cost: float, share: Tensor, budget: float, r_min: int = 0) -> Tensor:
    """Ranks [K] of the first directions of each state, with `sum(share * ranks) * cost <= budget`.

    gain : [K, R], never negative; a state's kept set is a prefix
    cost : of one direction; share: [K], how often each state occurs, any positive scale

    The most gain at what is spent, but for the last block of `isotonic`, which is bought as far as it is paid for.
    Raises ValueError for NaN gains, costs that are not positive, and budgets below that of ``r_min``.
    """
    _check(gain[:, None], torch.tensor([cost]), share)
    price = (share.double() / share.double().sum() * cost).tolist()
    states, most = gain.shape
    least = min(r_min, most)
    ranks, spent = [least] * states, least * cost
    if spent > budget:
        raise ValueError(
            f"budget = {budget:g} is below {spent:g}, the cost of r_min = {r_min}; raise it or lower r_min"
        )
    worth = isotonic(gain)[:, least:]
    order = worth.flatten().sort(descending=True, stable=True)
    for value, place in zip(order.values.tolist(), order.indices.tolist(), strict=True):
        state = place // max(1, most - least)
        if value <= 0 or spent + price[state] > budget:
            break  # and not a cheaper one after it, or a larger budget could mean a lower rank
        ranks[state] += 1
        spent += price[state]
    return torch.tensor(ranks)


def allocate(
    gain: Tensor, cost: Tensor, share: Tensor, budget: float, r_min: int = 0, spend: bool = False
) -> Allocation:
    """Directions for a mean cost of at most ``budget``.

    gain  : [K, L, R], what the loss falls by if direction r of layer l acts in state k; -inf where there is none
    cost  : [L], of one direction of layer l, in the budget's unit
    share : [K], how often each state occurs; any positive scale
    r_min : directions that are always kept, the best of each state and layer
    spend : also take directions that gain nothing while there is budget

    Raises ValueError for NaN gains, costs that are not positive, and budgets below that of ``r_min``.
    """
    gain, cost, share = gain.double(), cost.double(), share.double()
    _check(gain, cost, share)
    share = share / share.sum()
    exists = gain > -math.inf
    ratio = gain / cost[:, None]
    best = ratio.argsort(dim=-1, descending=True, stable=True)
    place = torch.empty_like(best).scatter_(-1, best, torch.arange(gain.shape[-1]).expand_as(best).clone())
    forced = exists & (place < r_min)
    price = (share[:, None] * cost).unsqueeze(-1).expand_as(gain)
    base = float(price[forced].sum())
    if base > budget:
        raise ValueError(f"budget = {budget:g} is below {base:g}, the cost of r_min = {r_min}; raise it or lower r_min")
    open_ = exists & ~forced & (torch.ones_like(exists) if spend else gain > 0)
    ratios, order = ratio[open_].sort(descending=True, stable=True)
    spent = base + price[open_][order].cumsum(0)
    fits = int((spent <= budget).sum())
    if fits == len(ratios):
        level = -math.inf if spend else 0.0
        kept = forced | open_
    else:
        level = float(ratios[fits])  # the first that does not fit; ties with it stay out, so no state is favoured
        kept = forced | (open_ & (ratio > level))
    return Allocation(kept, level, float(price[kept].sum()))


def _check(gain: Tensor, cost: Tensor, share: Tensor) -> None:
    if gain.dim() != 3 or cost.shape != gain.shape[1:2] or share.shape != gain.shape[:1]:
        shapes = tuple(gain.shape), tuple(cost.shape), tuple(share.shape)
        raise ValueError(f"gain, cost, share have shapes {shapes}; they must be [K, L, R], [L], [K]")
    if gain.isnan().any() or (gain == math.inf).any():
        raise ValueError("a gain is NaN or infinite; the statistics behind it saw a bad batch")
    if not (cost > 0).all() or not (share > 0).all():
        raise ValueError("costs and shares must be positive")
