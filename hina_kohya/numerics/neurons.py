"""Neurons of matrices [..., m, n]: the vectors along the shorter side, so rows of a tall one, columns of a wide one."""

import torch
from torch import Tensor

from hina_kohya.numerics.factored import row_mean
from hina_kohya.numerics.reduce import mat_rms


def even_out(x: Tensor, average: Tensor, beta: float, eps: float) -> tuple[Tensor, Tensor]:
    """x with each neuron over the root of its running mean square, at an RMS of 1; and the new average.

    average: [..., 1, max(m, n)]. Zero stays zero.
    """
    wide = x.shape[-2] < x.shape[-1]
    x = x.mT if wide else x
    average = average.lerp(row_mean(x.square()).mT, 1 - beta)
    x = x / (average.mT.sqrt() + eps)
    x = x / mat_rms(x).clamp_(min=torch.finfo(x.dtype).tiny)
    return (x.mT if wide else x), average
