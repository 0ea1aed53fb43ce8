"""8-bit codes that are equally spaced after a root: signed eighth root for averages, sixteenth root for squares.

A root spends the codes where Adam needs them: a step divides an average by the root of a square, so it is the relative
error that counts, over the magnitudes that lie side by side in a block. Both codes come down to where a root has few
codes left, and no further: to 1e-8 and 1e-12 of the largest, 6 % and 5 % apart at the top, 25 % and 29 % at the bottom.
How they were chosen: ``benchmarks/results/eight_bit.md``. The unsigned code has no zero: a v that decodes to 0 turns
m / sqrt(v) into m / eps, the failure described in arXiv:2309.01507, section 4.1.

All functions take blocks ``[..., nb, bs]`` of fp32 and one scale a block ``[..., nb, 1]``.
"""

import torch
from torch import Tensor

SIGNED_STEPS, SIGNED_SKIPPED = 127, 13
UNSIGNED_STEPS, UNSIGNED_SKIPPED = 256, 54
HEADROOM = 1.25


def largest(x: Tensor) -> Tensor:
    """Of the magnitudes in each block."""
    return x.abs().amax(dim=-1, keepdim=True)


def encode_signed(x: Tensor, scale: Tensor) -> Tensor:
    """Codes int8 in [-127, 127] for x = sign(c) ((|c| + 13) / 140)^8 scale, 0 for c = 0; ``scale`` is `largest`."""
    # An all-zero block has scale 0: any code decodes to 0 there, but 0 / 0 would make the code undefined.
    root = (x / scale.clamp(min=torch.finfo(scale.dtype).tiny)).abs_().sqrt_().sqrt_().sqrt_()
    code = root.mul_(SIGNED_STEPS + SIGNED_SKIPPED).sub_(SIGNED_SKIPPED).round_().clamp_(min=0)
    return torch.copysign(code, x).to(torch.int8)


def decode_signed(code: Tensor, scale: Tensor) -> Tensor:
    sign = code.to(scale.dtype)
    root = sign.abs().add_(SIGNED_SKIPPED).mul_(1 / (SIGNED_STEPS + SIGNED_SKIPPED))
    return root.square_().square_().square_().mul_(sign.sign_()).mul_(scale)


def encode_unsigned(x: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """Codes uint8 c for x = ((c + 55) / 310)^16 scale, up or down by ``noise``: the root's mean is kept.

    noise: whole numbers, uniform in [-2^15, 2^15). x must not be negative, nor above ``scale``. A step moves an average
    of squares by a thousandth, which rounding to the nearest code would not see.
    """
    root = (x / scale.clamp(min=torch.finfo(scale.dtype).tiny)).sqrt_().sqrt_().sqrt_().sqrt_()
    code = root.mul_(UNSIGNED_STEPS + UNSIGNED_SKIPPED).add_(noise, alpha=2.0**-16).sub_(UNSIGNED_SKIPPED + 1)
    return code.round_().clamp_(0, UNSIGNED_STEPS - 1).to(torch.uint8)


def decode_unsigned(code: Tensor, scale: Tensor) -> Tensor:
    root = code.to(scale.dtype).add_(UNSIGNED_SKIPPED + 1).mul_(1 / (UNSIGNED_STEPS + UNSIGNED_SKIPPED))
    return root.square_().square_().square_().square_().mul_(scale)


def least_ratio(x: Tensor, before: Tensor) -> Tensor:
    """In each block, by what its values changed at least."""
    return (x / before).amin(dim=-1, keepdim=True)


def falling_scale(largest: Tensor, least_ratio: Tensor, scale: Tensor) -> Tensor:
    """The scale of a block whose values are now at least ``least_ratio`` times what they were, relative to ``scale``.

    It falls as far as all values fall, so that an average without new squares keeps its code and decays exactly;
    rounded at each step, its path would be a random one. Where the largest value has outgrown it, it starts anew.
    """
    fallen = scale * least_ratio
    return torch.where(fallen >= largest, fallen, largest * HEADROOM)  # NaN, of a block that was all zero, starts anew
