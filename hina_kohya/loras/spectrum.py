r"""Singular values of a change of a weight, and its best factors of any rank, from its factors alone.

.. math::
    U D = Q_u R_u R_d^\top Q_d^\top, \quad R_u R_d^\top = X \operatorname{diag}(s) Y^\top, \quad
    U' = U R_d^\top Y s^{-1/2}, \quad D' = s^{-1/2} X^\top R_u D

Only the K x K matrices R are decomposed and no Q is formed: `U' D'`, cut to its first k columns and rows, is the
truncated SVD. Each direction carries half of its strength in either factor, so that fp16 holds both.

With a metric, R_u^T R_u and R_d^T R_d are the second moments of the loss's gradients instead of those of the factors,
and the singular values measure the loss (see `metric`).
"""

import dataclasses as dc
import math

import torch
from torch import Tensor

from hina_kohya.loras.forms import Form, Kronecker, Product

# Below this share of the largest singular value no float32 tensor can hold a direction beside it.
LEAST = 2.0**-23
# Below this share of the factors' sizes a singular value is float64's own rounding: a file less itself.
ROUNDING = 1e-13


@dc.dataclass(frozen=True)
class Moments:
    """The metric of a Product of K columns, on either side of its core: both [K, K], see `metric`."""

    down: Tensor
    up: Tensor


def values(form: Form, moments: Moments | None = None) -> Tensor:
    """[K] singular values, the largest first, without those that are rounding; float64."""
    if isinstance(form, Kronecker) and moments is None:
        left, right = (values(side) for side in (form.left, form.right))
        s = torch.outer(left, right).flatten().sort(descending=True).values
        return _kept(s[: _rank(s)])
    up_root, down_root = _roots(form.product(), moments)
    s = torch.linalg.svdvals(up_root @ down_root.T)
    return _kept(s[: _rank(s, up_root, down_root)])


def factors(form: Form, rank: int, moments: Moments | None = None) -> Product:
    """up [m, k] and down [k, n] of the best approximation of rank k <= `rank`, the strongest direction first."""
    if isinstance(form, Kronecker) and moments is None:
        return _kronecker_factors(form, rank)
    product = form.product() if moments is not None else form.product().reduced()
    up_root, down_root = _roots(product, moments)
    x, s, yt = torch.linalg.svd(up_root @ down_root.T)
    k = min(rank, _rank(s, up_root, down_root))
    half = s[:k].sqrt()
    up = product.up @ (down_root.T @ (yt[:k].T / half))
    down = ((x[:, :k] / half).T @ up_root) @ product.down
    return Product(up, down, form.kernel)


def _kronecker_factors(form: Kronecker, rank: int) -> Product:
    left, right = (factors(side, min(side.shape)) for side in (form.left, form.right))
    # Each column of a factor is as long as the root of its singular value, so products of lengths are in order.
    left_s, right_s = (side.up.square().sum(0) for side in (left, right))
    s, order = torch.outer(left_s, right_s).flatten().sort(descending=True, stable=True)
    order = order[: min(rank, _rank(s))]
    i, j = order // len(right_s), order % len(right_s)
    up = (left.up[:, i].unsqueeze(1) * right.up[:, j].unsqueeze(0)).flatten(0, 1)
    down = (left.down[i].unsqueeze(2) * right.down[j].unsqueeze(1)).flatten(1)
    return Product(up, down, form.kernel)


def _roots(product: Product, moments: Moments | None) -> tuple[Tensor, Tensor]:
    """R_u and R_d, [., K]."""
    if moments is None:
        product = product.reduced()
        return _triangle(product.up), _triangle(product.down.T)
    return _root(moments.up), _root(moments.down)


def _triangle(matrix: Tensor) -> Tensor:
    """R of a QR decomposition: R^T R is the Gram matrix."""
    return torch.linalg.qr(matrix, mode="r").R


def _root(gram: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return eigenvalues.clamp_min(0).sqrt().unsqueeze(1) * vectors.T


def _kept(s: Tensor) -> Tensor:
    """A copy in numpy's memory: a small tensor of torch's that lives on pins the large ones freed around it (glibc)."""
    return torch.from_numpy(s.numpy().copy())


def _rank(s: Tensor, *roots: Tensor) -> int:
    """How many of these falling singular values are more than rounding."""
    if not len(s):
        return 0
    size = math.prod(float(root.norm()) for root in roots) if roots else 0.0
    return int((s > max(LEAST * float(s[0]), ROUNDING * size)).sum())
