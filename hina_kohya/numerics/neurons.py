"""Neurons of matrices [..., m, n]: the vectors along the shorter side, so rows of a tall one, columns of a wide one.

What has no gradient does not count: neurons without one in this step, and lines across all neurons that no step moves.
Else a few live neurons would be scaled up for all the dead ones.
"""

import torch
from torch import Tensor

from hina_kohya.numerics.reduce import mat_sum

# Share of the largest energy below which a line across all neurons is taken for one that does not move. An orthogonal
# matrix has about the same in all of them.
_FAINT = 1e-6


class _Extent:
    """Which part of x, an orthogonalised momentum, moves. ``grad`` is this step's gradient.

    live  : [..., 1, L] 1 for the neurons that have a gradient in this step, else 0
    energy: [..., 1, L] sum of x^2 over each neuron
    width : [..., 1, 1] entries of a neuron that move
    length: [..., 1, 1] neurons that have a gradient
    """

    def __init__(self, x: Tensor, grad: Tensor, wide: bool | None = None):
        self.wide = x.shape[-2] < x.shape[-1] if wide is None else wide
        along, across = (-2, -1) if self.wide else (-1, -2)
        squares = x.square()
        self.live = self.row(grad.abs().amax(dim=along, keepdim=True)).sign()
        self.energy = self.row(squares.sum(dim=along, keepdim=True))
        lines = squares.sum(dim=across, keepdim=True)
        self.width = mat_sum((lines > lines.amax(dim=(-2, -1), keepdim=True) * _FAINT).to(x.dtype)).clamp_(min=1)
        self.length = mat_sum(self.live)

    def row(self, x: Tensor) -> Tensor:
        return x if self.wide else x.mT


def scaled(x: Tensor, grad: Tensor, size: Tensor) -> Tensor:
    """x, whose rows or columns are orthonormal, at an RMS of ``size`` [..., 1, 1]; zero without any gradient."""
    extent = _Extent(x, grad)
    longer = torch.maximum(extent.length, extent.width)
    return x * (longer.sqrt_() * extent.length.clamp(max=1) * size)


def even_out(x: Tensor, grad: Tensor, size: Tensor, average: Tensor, beta: float, eps: float) -> tuple[Tensor, Tensor]:
    """x with each neuron over the root of its running mean square, at an RMS of ``size``; and the new average.

    The RMS is over neurons that have a gradient: x becomes zero without any. A neuron without keeps its average.
    size: [..., 1, 1]; average: [..., 1, max(m, n)].
    """
    extent = _Extent(x, grad)
    factor, average = _evening(extent, size, extent.length * extent.width, average, beta, eps)
    return x * factor, average


def even_out_factor(
    x: Tensor, grad: Tensor, size: Tensor, average: Tensor, beta: float, eps: float, wide: bool
) -> tuple[Tensor, Tensor]:
    """The same for a factor of a product, whose neurons lie along the rank: columns of a ``wide`` one, else rows.

    The norm is ``size`` times that of as many orthonormal rows or columns.
    size: [..., 1, 1]; average: [..., 1, n] if wide, else [..., 1, m].
    """
    extent = _Extent(x, grad, wide)
    factor, average = _evening(extent, size, torch.minimum(extent.length, extent.width), average, beta, eps)
    return x * factor, average


def _evening(
    extent: _Extent, size: Tensor, square: Tensor, average: Tensor, beta: float, eps: float
) -> tuple[Tensor, Tensor]:
    """What each neuron is multiplied by, so that all squares sum to size^2 ``square``; and the new average."""
    average = average.lerp(extent.energy / extent.width, extent.live * (1 - beta))
    root = average.sqrt().add_(eps)
    evened = mat_sum(extent.energy / root.square()).clamp_(min=torch.finfo(average.dtype).tiny)
    return extent.row(size * (square / evened).sqrt_() / root), average
