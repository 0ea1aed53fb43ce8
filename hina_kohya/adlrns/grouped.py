"""Run each sample at its own cell's rank: sort the batch by cell once, then one contiguous matrix pair a cell."""

import dataclasses as dc
import warnings
from collections.abc import Callable

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

    def unsort(self, x: Tensor) -> Tensor:
        return x if self.back is None else x.index_select(0, self.back)

    def sorted(self) -> "Groups":
        """The same groups for a batch that `sort` has been applied to."""
        return Groups(None, None, self.spans)


def group(cell: Tensor, cells: int) -> Groups:
    """cell: [N], in [0, cells]; cell number ``cells`` is that of samples without a finite score, and warned of.

    Reads the group sizes back to the host, the only wait of a forward.
    """
    spans, start = [], 0
    for k, size in enumerate(torch.bincount(cell, minlength=cells + 1).tolist()):
        if size:
            spans.append((k, start, start + size))
            start += size
    if spans and spans[-1][0] == cells:
        warnings.warn("samples that are not finite run at full rank; their outputs are not finite", stacklevel=2)
    if len(spans) <= 1:
        return Groups(None, None, tuple(spans) or ((0, 0, 0),))
    order = cell.argsort(stable=True)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return Groups(order, back, tuple(spans))


def run_grouped(
    x: Tensor, groups: Groups, one: Callable[[Tensor, int, Tensor | None], Tensor], into: Tensor | None = None
) -> Tensor:
    """``one(rows, cell, out)`` for each group of the batch x [N, ...]; the result in the order of x.

    into: an empty tensor for the result, of which ``one`` fills its rows ``out``: one copy less. There is none where
    gradients are needed.
    """
    if len(groups.spans) == 1:
        return one(x, groups.spans[0][0], into)
    rows = groups.sort(x)
    parts = [
        one(rows[start:stop], cell, None if into is None else into[start:stop]) for cell, start, stop in groups.spans
    ]
    return groups.unsort(torch.cat(parts) if into is None else into)
