"""Comparisons as numbers 0 and 1. On the CPU a comparison to bool and its conversion cost ten times this arithmetic."""

import torch
from torch import Tensor

from hina_kohya.numerics.pieces import elementwise
from hina_kohya.numerics.reduce import mat_norm, mat_sum


def live(x: Tensor) -> Tensor:
    """[x != 0] as numbers."""
    return x.sign().abs_()


def not_negative_(x: Tensor) -> Tensor:
    """[x >= 0] as numbers, written over x, which the caller must own. NaN gives 1."""
    return x.sign_().clamp_(max=0).add_(1)


def cautious(update: Tensor, grad: Tensor, floor: float, trust: Tensor | None = None) -> Tensor:
    """The update as Cautious leaves it.

    Entries that agree with the gradient in sign count 1, others ``trust`` [N, 1, 1] or 0; each is multiplied by that
    over the mean of these numbers, which is at least ``floor``. An entry without an update or a gradient can neither
    agree nor disagree: it stays and is not part of the mean, or the few that do have a gradient would be scaled up for
    all that have none.
    """
    sign = elementwise(lambda u, g: (u * g).sign_(), update, grad)
    count = mat_norm(sign).square_()
    kept = count.lerp(mat_sum(sign), 0.5)
    if trust is not None:
        kept = kept.addcmul(count - kept, trust)
    scale = (count / kept.clamp_(min=torch.finfo(kept.dtype).tiny)).clamp_(max=1 / floor)
    more, left = scale - 2, None if trust is None else scale * trust

    def masked(sign: Tensor, u: Tensor) -> Tensor:
        agree = sign.clamp(min=0)
        opposed = None if left is None else (agree - sign).mul_(left)
        factor = agree.mul_(more).add_(sign).add_(1)  # scale where the sign is 1, 1 where it is 0, 0 where it is -1
        return (factor if opposed is None else factor.add_(opposed)).mul_(u)

    return elementwise(masked, sign, update)


def keep_(new: Tensor, old: Tensor, valid: Tensor) -> None:
    """Writes the matrices of ``new`` that are ``valid`` [N, 1, 1] over those of ``old``; no bit of the others moves."""
    for dtype in (torch.complex128, torch.complex64):  # the largest words: `where` takes as long for a byte as for one
        if all(_has_words(x, dtype.itemsize) for x in (new, old)):
            new, old = new.view(dtype), old.view(dtype)
            break
    torch.where(valid, new, old, out=old)


def _has_words(x: Tensor, size: int) -> bool:
    whole = all(count * x.element_size() % size == 0 for count in (x.shape[-1], x.storage_offset()))
    return whole and x.is_contiguous() and x.element_size() < size
