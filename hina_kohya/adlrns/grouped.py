"""Run each sample at its own cell's rank: sort the batch by cell once, then one contiguous matrix pair a cell."""

import dataclasses as dc
import itertools
import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


@dc.dataclass(frozen=True)
class Groups:
    """order, back: [N], the sorting permutation and its inverse, None if the batch is sorted already.
    spans: (cell, start, stop) of the sorted batch; never empty, so that an empty batch is a span of no samples."""

    order: Tensor | None
    back: Tensor | None
    spans: tuple[tuple[int, int, int], ...]

    def sort(self, x: Tensor) -> Tensor:
        return x if self.order is None else x.index_select(0, self.order)

    def part(self, x: Tensor, start: int, stop: int) -> Tensor:
        """``sort(x)[start:stop]``, of which nothing else is moved."""
        return x[start:stop] if self.order is None else x.index_select(0, self.order[start:stop])

    def unsort(self, x: Tensor) -> Tensor:
        return x if self.back is None else x.index_select(0, self.back)

    def sorted(self) -> "Groups":
        """The same groups for a batch that `sort` has been applied to."""
        return Groups(None, None, self.spans)


def group(cell: Tensor, cells: int) -> Groups:
    """cell: [N], in [0, cells]; cell number ``cells`` is that of samples without a finite score, and warned of.

    Reads the group sizes back to the host, the only wait of a forward.
    """
    sorted_cell, order = cell.sort(stable=True)
    ends = torch.searchsorted(sorted_cell, torch.arange(cells + 1, device=cell.device), right=True).tolist()
    spans = tuple((k, start, end) for k, (start, end) in enumerate(itertools.pairwise([0, *ends])) if start < end)
    if spans and spans[-1][0] == cells:
        warnings.warn("samples that are not finite run at full rank; their outputs are not finite", stacklevel=2)
    if len(spans) <= 1:
        return Groups(None, None, spans or ((0, 0, 0),))
    return Groups(order, order.argsort(), spans)


def run_grouped(x: Tensor, groups: Groups, one: Callable[[Tensor, int], Tensor]) -> Tensor:
    """``one(rows, cell)`` for each group of the batch x [N, ...]; the result in the order of x."""
    if len(groups.spans) == 1:
        return one(x, groups.spans[0][0])
    rows = groups.sort(x)
    return groups.unsort(torch.cat([one(rows[start:stop], cell) for cell, start, stop in groups.spans]))


def run_matrices(
    x: Tensor,
    groups: Groups,
    ranks: Sequence[int],
    down: Tensor,
    up: Tensor,
    shift: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """``up[:, :r] (down[:r] x + shift[k, :r]) + bias[k]`` with r = ranks[k] of a sample's cell k, without gradients.

    As `run_grouped`, but each product reads its rows where they are and writes its own of the result.

    x: [N, ..., in]; down: [R, in]; up: [out, R]; shift: [cells, R]; bias: [cells, out]
    """
    # `layer.DynamicLowRankLayer` keeps its factors so that these two are contiguous.
    into, out = down.T, up.T
    each = math.prod(x.shape[1:-1])
    y = x.new_empty(len(x) * each, len(up))
    for k, start, stop in groups.spans:
        r, rows, written = ranks[k], groups.part(x, start, stop).flatten(0, -2), y[start * each : stop * each]
        hidden = rows @ into[:, :r] if shift is None else torch.addmm(shift[k, :r], rows, into[:, :r])
        if bias is None:
            torch.mm(hidden, out[:r], out=written)
        else:
            torch.addmm(bias[k], hidden, out[:r], out=written)
    return groups.unsort(y.view(*x.shape[:-1], len(up)))
