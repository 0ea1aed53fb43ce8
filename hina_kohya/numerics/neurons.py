"""Neurons of matrices [..., m, n]: the vectors along the shorter side, so rows of a tall one, columns of a wide one.

What has no gradient does not count: a neuron without one in this step, and the part of every neuron that no step moves.
Else a few live neurons would be scaled up for all the dead ones.
"""

import torch
from torch import Tensor

from hina_kohya.numerics.reduce import mat_sum

# Share of the largest energy below which a line across all neurons is taken for one that does not move. An orthogonal
# matrix has about the same in all of them.
_FAINT = 1e-6


class Extent:
    """Which part of x, a matrix made of gradients, moves. ``grad`` is this step's gradient.

    live  : [..., 1, L] 1 for the neurons that have a gradient in this step, else 0
    energy: [..., 1, L] sum of x^2 over each neuron
    width : [..., 1, 1] entries of a neuron that move
    """

    def __init__(self, x: Tensor, grad: Tensor):
        self.wide = x.shape[-2] < x.shape[-1]
        along, across = (-2, -1) if self.wide else (-1, -2)
        squares = x.square()
        self.live = self.row(grad.abs().amax(dim=along, keepdim=True)).sign()
        self.energy = self.row(squares.sum(dim=along, keepdim=True))
        lines = squares.sum(dim=across, keepdim=True)
        self.width = mat_sum((lines > lines.amax(dim=(-2, -1), keepdim=True) * _FAINT).to(x.dtype)).clamp_(min=1)

    def row(self, x: Tensor) -> Tensor:
        return x if self.wide else x.mT

    @property
    def length(self) -> Tensor:
        """[..., 1, 1] neurons that have a gradient."""
        return mat_sum(self.live)


def even_out(x: Tensor, grad: Tensor, average: Tensor, beta: float, eps: float) -> tuple[Tensor, Tensor]:
    """x with each neuron over the root of its running mean square, at an RMS of 1; and the new average.

    average: [..., 1, max(m, n)]. A neuron without a gradient keeps its average; without any gradient x becomes zero.
    """
    extent = Extent(x, grad)
    average = average.lerp(extent.energy / extent.width, extent.live * (1 - beta))
    root = average.sqrt().add_(eps)
    evened = extent.energy / root.square()
    # Of those that have a gradient now; and never less than of all that move, which are more than the former where
    # gradients come and go, and would be blown up where those have next to nothing left of x.
    every, tiny = extent.energy.sign(), torch.finfo(x.dtype).tiny
    size = torch.maximum(*(mat_sum(evened * each) / mat_sum(each).clamp_(min=1) for each in (extent.live, every)))
    size = size.div_(extent.width).sqrt_()
    factor = extent.live.amax(dim=-1, keepdim=True) / root.mul_(size).clamp_(min=tiny)
    return x * extent.row(factor), average
