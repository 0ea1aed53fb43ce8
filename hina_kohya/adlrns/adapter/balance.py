"""The basis of a pair of factors in which few directions carry most of what the pair does.

up @ down is (up @ T) @ (T^-1 @ down) for any invertible T, but T decides what leaving directions out costs. The best T
is that of the singular value decomposition of up @ down in the metric of what it does to the loss, as in `compression`:
E[x x^T] before it, E[g g^T] after it. Both enter as R x R sums alone, C of h h^T for h = down x and S of d d^T for
d = dL/dh = up^T g; the squared singular values are the eigenvalues of C S. It is the balanced truncation of a linear
system (Moore, 1981, doi 10.1109/TAC.1981.1102568) with C and S for its Gramians.
"""

import torch
from torch import Tensor

_LEAST = 1e-6  # of the largest eigenvalue: below it, a sum of float32 knows nothing
_SHORTEST = 1e-4  # of the longest row: more directions than inputs leave rows of nothing, which are not blown up


def balanced(grams: Tensor, down: Tensor) -> Tensor | None:
    """[2, R, R]: T and its inverse, the strongest direction first; None for sums that say nothing.

    grams: [2, R, R], C and S; down: [R, inner]. Rows of T^-1 @ down that are not nothing have the mean length of those
    of down.
    """
    grams, down = grams.double(), down.double()
    if not grams.isfinite().all() or not (grams.diagonal(dim1=1, dim2=2).sum(1) > 0).all():
        return None
    values, vectors = torch.linalg.eigh(grams)
    roots = vectors * torch.maximum(values, _LEAST * values[:, -1:]).sqrt()[:, None]
    hidden, sensitivity = roots
    left, _, _ = torch.linalg.svd(sensitivity.T @ hidden)
    basis, inverse = torch.linalg.solve(sensitivity.T, left), left.T @ sensitivity.T
    length = (inverse @ down).norm(dim=1) / down.square().sum(1).mean().sqrt()
    length = length.clamp(min=_SHORTEST * float(length.max()))
    return torch.stack([basis * length, inverse / length[:, None]])


def strengths(basis: Tensor, grams: Tensor) -> Tensor:
    """[R]: the singular value of each direction of `balanced`, in the metric that the sums are of."""
    transform, inverse = basis.double()
    hidden, sensitivity = grams.double()
    squares = (inverse @ hidden @ inverse.T).diagonal() * (transform.T @ sensitivity @ transform).diagonal()
    return squares.clamp(min=0).sqrt()
