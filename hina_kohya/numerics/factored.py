"""A matrix of squares kept as its row and column means: S = row col / mean(row), the best such product (Adafactor).

Matrices are [..., m, n]; their means are one row [..., 1, m + n], rows first: both have the same mean, so they share
the blocks of an 8-bit code well. Nothing is reduced over the leading dimensions.
"""

import torch
from torch import Tensor

from hina_kohya.numerics.reduce import mat_count


def row_mean(x: Tensor) -> Tensor:
    return x.mean(dim=-1, keepdim=True)


def means(x: Tensor) -> Tensor:
    return torch.cat((row_mean(x).mT, x.mean(dim=-2, keepdim=True)), dim=-1)


def live_means(x: Tensor) -> Tensor:
    """As `means`, of rows over the columns that are not zero, and of columns over such rows: zeros change nothing."""
    size = x.abs()
    rows, columns = (mat_count(size.amax(dim=dim, keepdim=True)) for dim in (-1, -2))
    return torch.cat((x.sum(dim=-1, keepdim=True).mT / columns, x.sum(dim=-2, keepdim=True) / rows), dim=-1)


def averaged(old: Tensor, new: Tensor, beta: float, eps: float) -> Tensor:
    """``old`` a share 1 - beta nearer to new + eps."""
    return (old * beta).add_(new + eps, alpha=1 - beta)


def inverse_root(means: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Factors [..., m, 1] and [..., 1, n] whose product is 1 / sqrt(S). The means must be positive."""
    root = means.rsqrt()
    size = row_mean(means[..., :m]).sqrt_()
    return (root[..., :m] * size).mT, root[..., m:]
