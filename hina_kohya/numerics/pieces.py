"""Elementwise work on a large matrix, piece by piece: on the CPU memory is the bound unless a piece is cached."""

from collections.abc import Callable

from torch import Tensor

CACHED = 1 << 18  # elements


def elementwise(function: Callable[..., Tensor], *xs: Tensor) -> Tensor:
    """``function`` of tensors [N, m, n], which it takes entry by entry, as [N, 1, length]."""
    first, *others = (x.flatten(1).unsqueeze(1) for x in xs)

    def of_pieces(piece: Tensor, start: int) -> Tensor:
        return function(piece, *(x.narrow(2, start, piece.shape[2]) for x in others))

    return in_pieces(of_pieces, first, dim=2).view(xs[0].shape)


def in_pieces(function: Callable[[Tensor, int], Tensor], x: Tensor, dim: int) -> Tensor:
    """``function(piece, start)`` of each piece of x along ``dim``, put together again along it."""
    length = x.shape[dim]
    step = max(1, CACHED * length // max(1, x.numel()))
    if x.device.type != "cpu" or step >= length:
        return function(x, 0)
    whole: Tensor | None = None
    for start in range(0, length, step):
        piece = function(x.narrow(dim, start, min(step, length - start)), start)
        if whole is None:
            whole = piece.new_empty(*piece.shape[:dim], length, *piece.shape[dim + 1 :])
        whole.narrow(dim, start, piece.shape[dim]).copy_(piece)  # while the piece is in cache
    assert whole is not None
    return whole
