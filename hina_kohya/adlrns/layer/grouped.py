"""Run each sample at its own cell's rank: sort the batch by cell once, then one contiguous matrix pair a cell."""

import itertools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Groups(NamedTuple):
    """order, back: [N], the sorting permutation and its inverse, None if the batch is sorted already.
    spans: (cell, start, stop) of the sorted batch; never empty, so that an empty batch is a span of no samples."""

    order: Tensor | None
    back: Tensor | None
    spans: list[tuple[int, int, int]]

    @property
    def samples(self) -> int:
        return self.spans[-1][2]

    def sort(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(0, self.order)

    def unsort(self, x: Tensor) -> Tensor:
        return x if self.back is None else x.index_select(0, self.back)

    def sorted(self) -> "Groups":
        """The same groups for a batch that `sort` has been applied to."""
        return Groups(None, None, self.spans)


class CellContext:
    """The groups of the batch that a model is working on, shared by its layers; and the MACs they have spent on it."""

    def __init__(self) -> None:
        self.groups: Groups | None = None
        self.macs = 0


def group(score: Tensor, edges: Tensor) -> Groups:
    """score: [N], not NaN; edges: [cells], the last infinite. Cell k is that of scores in [edges[k - 1], edges[k]);
    infinite ones are in cell number ``cells``, that of samples without a finite score, and warned of.

    Reads the group sizes back to the host, the only wait of a forward.
    """
    rising, order = score.sort(stable=True)
    ends = [0, *torch.searchsorted(rising, edges).tolist(), len(score)]
    spans = [(k, start, end) for k, (start, end) in enumerate(itertools.pairwise(ends)) if start < end]
    if spans and spans[-1][0] == len(edges):
        warnings.warn("samples that are not finite run at full rank; their outputs are not finite", stacklevel=2)
    if len(spans) <= 1:
        return Groups(None, None, spans or [(0, 0, 0)])
    return Groups(order, order.argsort(), spans)


def run_grouped(x: Tensor, groups: Groups, one: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``one(rows, cell)`` for each group of the batch x [N, ...]; the result in the order of x."""
    if len(groups.spans) == 1:
        return one(x, groups.spans[0][0])
    rows = groups.sort(x)
    return groups.unsort(torch.cat([one(rows[start:stop], cell) for cell, start, stop in groups.spans]))
