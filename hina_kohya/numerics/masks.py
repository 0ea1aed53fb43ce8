"""Comparisons as numbers 0 and 1. On the CPU a comparison to bool and its conversion cost ten times this arithmetic."""

import torch
from torch import Tensor

from hina_kohya.numerics.reduce import mat_sum


def live(x: Tensor) -> Tensor:
    """[x != 0] as numbers."""
    return x.sign().abs_()


def not_negative_(x: Tensor) -> Tensor:
    """[x >= 0] as numbers, written over x, which the caller must own. NaN gives 1."""
    return x.sign_().clamp_(max=0).add_(1)


def cautious(agreement: Tensor, trust: Tensor | None, floor: float) -> Tensor:
    """What Cautious multiplies an update by, from the signs of update times gradient.

    Entries that agree count 1, those that disagree ``trust`` [N, 1, 1] or 0, each over the mean of these numbers, which
    is at least ``floor``. An entry without an update or a gradient can neither agree nor disagree: it gets 1 and is
    not part of the mean, or the few that do have a gradient would be scaled up for all that have none.
    """
    concerned, kept = agreement.abs(), agreement.clamp(min=0)
    if trust is not None:
        kept = kept.addcmul_(concerned - kept, trust)
    inverse_mean = mat_sum(concerned) / mat_sum(kept).clamp_(min=torch.finfo(kept.dtype).tiny)
    return kept.mul_(inverse_mean.clamp_(max=1 / floor)).add_(1 - concerned)
