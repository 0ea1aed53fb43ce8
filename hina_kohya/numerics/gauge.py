"""Steps of W = B A that do not depend on how W is written: (M A, B M^-1) gives the same W for any invertible M."""

import torch
from torch import Tensor

# Of a Gram matrix's mean eigenvalue: what is added to all, so that fp32 can factor it. Its rounding is r 6e-8 of that.
RIDGE = 1e-6


def partners_root(own: Tensor, other: Tensor, damping: Tensor, grows: bool) -> Tensor:
    r"""L^-1 of the partner's damped Gram matrix L L^T. own, other, L [N, r, r]: A A^T and B^T B; damping tau [N, 1, 1].

    .. math:: \tilde S_2 = S_2 + \tau^2 S_1^{-1}, \quad \tilde S_1 = S_1 + \tau^2 \tilde S_2^{-1}

    The second is the factor that starts at zero: the own one if it ``grows``, else the partner. S_1 -> M S_1 M^T with
    S_2 -> M^-T S_2 M^-1 gives roots that differ by M and a rotation.
    """
    square = damping.square()
    first, second = (other, own) if grows else (own, other)
    first = _ridged(first)
    root = inverse_root(_ridged(second + square * _squared(inverse_root(first))))
    return inverse_root(first + square * _squared(root)) if grows else root


def inverse_root(gram: Tensor) -> Tensor:
    """L^-1 of L L^T [N, r, r]. A matrix that is not positive definite gives NaN and leaves the others alone."""
    # Unchecked, since torch's own check waits for the device.
    root = torch.linalg.cholesky_ex(gram).L
    one = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(root, one.expand_as(gram), upper=False)


def _squared(root: Tensor) -> Tensor:
    """S^-1 of L^-1."""
    return root.mT @ root


def _ridged(gram: Tensor) -> Tensor:
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    ridge = diagonal.mean(dim=-1, keepdim=True).mul(RIDGE).clamp_(min=torch.finfo(gram.dtype).tiny)
    return gram + torch.diag_embed(ridge.expand_as(diagonal))
