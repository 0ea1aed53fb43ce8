"""The automagic mask in learning rates: the technique's own options are multiples of the group's."""

import math
from types import SimpleNamespace
from typing import Any

LEVELS = 253  # of the mask, which keeps a level in a byte


def options(settings: SimpleNamespace) -> dict[str, Any]:
    """The technique's options for `min_lr`, `max_lr` and `lr_bump`; empty where none of them is given.

    Raises ValueError where their range does not contain `lr`.
    """
    rates = (settings.min_lr, settings.max_lr, settings.lr_bump)
    if all(value is None for value in rates):
        return {}
    lr = settings.lr
    low, high = (settings.min_lr or lr / 10), (settings.max_lr or lr * 10)
    if not 0 < low <= lr <= high:
        raise ValueError(
            f"the mask's range min_lr = {low:g} to max_lr = {high:g} must contain lr = {lr:g}; "
            "leave min_lr and max_lr out for a tenth and ten times of lr"
        )
    mask: dict[str, Any] = {"low": low / lr, "high": high / lr}
    if settings.lr_bump is not None and low < high:
        steps = min(LEVELS, max(1.0, (high - low) / settings.lr_bump))
        mask["bump"] = math.expm1(math.log(high / low) / steps)
    return mask
