"""Batched decompositions of small matrices [..., k, k] that one non-finite matrix cannot bring down for the others."""

import torch
from torch import Tensor


def finite_or(x: Tensor, value: float) -> Tensor:
    """Matrices with any non-finite entry become ``value`` throughout: LAPACK refuses a whole batch for one of them."""
    return x.where(x.isfinite().all(dim=-1, keepdim=True).all(dim=-2, keepdim=True), value)


def pseudo_inverse(x: Tensor) -> Tensor:
    """Moore-Penrose inverse [..., r, k] of [..., k, r]; relative cut-off max(k, r) eps."""
    return torch.linalg.pinv(x, rtol=max(x.shape[-2:]) * torch.finfo(x.dtype).eps)


def inverse_root(x: Tensor, eps: float) -> Tensor:
    """E diag(1 / (sqrt(w + eps^2) + eps)) E^T of symmetric x = E diag(w) E^T, with w clamped at 0.

    NaN where x is not finite.
    """
    w, e = torch.linalg.eigh(finite_or((x + x.mT) / 2, 0.0))
    scale = (w.clamp(min=0) + eps**2).sqrt_().add_(eps).reciprocal_()
    return (e * scale.unsqueeze(-2)) @ e.mT + (x - x)
