"""A Linear's product for each cell, without gradients: its factors in memory, views of them that are kept, and what
runs them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .grouped import Groups


def factor(rows: int, columns: int, transposed: bool, **where: Any) -> Tensor:
    """[rows, columns], uninitialised. Products of few samples with a prefix of directions take less time on a CPU if
    neither factor has to be transposed for them: docs/adlrns.md."""
    return torch.empty(columns, rows, **where).T if transposed else torch.empty(rows, columns, **where)


class Matrices(NamedTuple):
    """What the samples of a cell are multiplied with. down: [in, r]; shift: [r]; up: [r, out]; bias: [out]"""

    down: Tensor
    shift: Tensor | None
    up: Tensor
    bias: Tensor | None


class MatricesOfCells:
    """``self(ranks, down, shift, up, bias)`` is each cell's `Matrices`, all views.

    They are kept from call to call, as to make them takes a tenth of a layer's time. What is written into a weight they
    see; if one is elsewhere in memory than before, or a rank is another, they are made anew.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Let go of the weights' memory."""
        self._kept: tuple[Any, tuple[Matrices, ...]] = (None, ())

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return MatricesOfCells, ()  # a copy is another layer's

    def __call__(
        self, ranks: tuple[int, ...], down: Tensor, shift: Tensor | None, up: Tensor, bias: Tensor | None
    ) -> tuple[Matrices, ...]:
        """ranks: one for each cell; down: [R, in]; shift: [cells, R]; up: [out, R]; bias: [cells, out]"""
        weights = (down, shift, up, bias)
        made_of = (ranks, *(None if weight is None else weight.data_ptr() for weight in weights))
        kept = self._kept
        if kept[0] != made_of:
            kept = self._kept = made_of, tuple(_views(k, r, *weights) for k, r in enumerate(ranks))
        return kept[1]


def _views(k: int, r: int, down: Tensor, shift: Tensor | None, up: Tensor, bias: Tensor | None) -> Matrices:
    return Matrices(
        down.detach()[:r].T,
        None if shift is None else shift.detach()[k, :r],
        up.detach()[:, :r].T,
        None if bias is None else bias.detach()[k],
    )


def run_matrices(x: Tensor, groups: Groups, cells: Sequence[Matrices]) -> Tensor:
    """x: [N, ..., in] -> ``(x @ down + shift) @ up + bias``, each sample with its own cell's.

    As `grouped.run_grouped`, but each product writes its own rows of the result: over those it was made of, where they
    are a sorted copy and as long, as memory that is in the cache already takes a tenth less time.
    """
    rows, out = groups.sort(x), cells[0].up.shape[1]
    y = rows if groups.order is not None and x.shape[-1] == out else x.new_empty(*x.shape[:-1], out)
    sizes = [stop - start for _, start, stop in groups.spans]
    before, written = rows, y
    if x.dim() > 2:
        tokens = math.prod(x.shape[1:-1])
        before, written, sizes = rows.flatten(0, -2), y.view(-1, out), [size * tokens for size in sizes]
    parts = before.split_with_sizes(sizes)
    results = parts if y is rows else written.split_with_sizes(sizes)
    for (k, _, _), part, result in zip(groups.spans, parts, results, strict=True):
        down, shift, up, bias = cells[k]
        hidden = part @ down if shift is None else torch.addmm(shift, part, down)
        if bias is None:
            torch.mm(hidden, up, out=result)
        else:
            torch.addmm(bias, hidden, up, out=result)
    return groups.unsort(y)
