"""The only reductions a technique may use: always per matrix, never over the bucket.

Reducing over a slab would couple matrices that have nothing to do with each other, and let one NaN reach them all.
Every function takes ``[..., m, n]`` and returns ``[..., 1, 1]``.
"""

import torch
from torch import Tensor

_MATRIX = (-2, -1)


def mat_sum(x: Tensor) -> Tensor:
    return x.sum(dim=_MATRIX, keepdim=True)


def mat_mean(x: Tensor) -> Tensor:
    return x.mean(dim=_MATRIX, keepdim=True)


def mat_dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=_MATRIX, keepdim=True)


def mat_count(x: Tensor) -> Tensor:
    """Entries that are not zero; 1 where all are, so that it can be divided by."""
    return x.sign().abs_().sum(dim=_MATRIX, keepdim=True).clamp_(min=1)


def mat_norm(x: Tensor) -> Tensor:
    """Frobenius norm."""
    return torch.linalg.vector_norm(x, dim=_MATRIX, keepdim=True)


def mat_rms(x: Tensor) -> Tensor:
    """Of the entries that are not zero."""
    return mat_norm(x) / mat_count(x).sqrt_()


def mat_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of the angle between two matrices taken as vectors; 0 where either is zero."""
    norms = mat_norm(x) * mat_norm(y)
    return mat_dot(x, y) / norms.clamp_(min=torch.finfo(x.dtype).tiny)
