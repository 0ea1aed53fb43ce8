"""Comparisons as numbers 0 and 1. On the CPU a comparison to bool and its conversion cost ten times this arithmetic."""

from torch import Tensor


def positive_(x: Tensor) -> Tensor:
    """[x > 0] as numbers, written over x, which the caller must own. NaN gives 0."""
    return x.sign_().clamp_(min=0)


def not_negative_(x: Tensor) -> Tensor:
    """[x >= 0] as numbers, written over x, which the caller must own. NaN gives 1."""
    return x.sign_().clamp_(max=0).add_(1)
