"""8-bit codes that are equally spaced after a root: signed square root for m, fourth root for v.

A root spends the codes where Adam needs them. Against bitsandbytes' dynamic map on the same bits: see
``benchmarks/results/quantisation.md``. The unsigned code has no zero: a v that decodes to 0 turns m / sqrt(v) into
m / eps, the failure described in arXiv:2309.01507, section 4.1.

All functions take blocks ``[..., nb, bs]`` of fp32 and one scale a block ``[..., nb, 1]``, its largest magnitude.
"""

import torch
from torch import Tensor

SIGNED_STEPS = 127
UNSIGNED_STEPS = 256


def encode_signed(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes int8 in [-127, 127] for x = sign(c) (c / 127)^2 scale."""
    magnitude = x.abs()
    scale = magnitude.amax(dim=-1, keepdim=True)
    code = magnitude.mul_(_reciprocal(scale)).sqrt_().mul_(SIGNED_STEPS).round_()
    return torch.copysign(code, x).to(torch.int8), scale


def decode_signed(code: Tensor, scale: Tensor) -> Tensor:
    root = code.to(scale.dtype)
    return root.abs().mul_(root).mul_(scale * (1 / SIGNED_STEPS**2))


def encode_unsigned(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes uint8 c for x = ((c + 1) / 256)^4 scale; x must not be negative."""
    scale = x.amax(dim=-1, keepdim=True)
    code = (
        (x * _reciprocal(scale)).rsqrt_().rsqrt_().mul_(UNSIGNED_STEPS).sub_(1).round_().clamp_(0, UNSIGNED_STEPS - 1)
    )
    return code.to(torch.uint8), scale


def encode_unsigned_stochastic(x: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """As `encode_unsigned`, but up or down by ``uniform`` in [0, 1) such that the decoded mean is x."""
    scale = x.amax(dim=-1, keepdim=True)
    x = x * _reciprocal(scale)
    below = x.sqrt().sqrt_().mul_(UNSIGNED_STEPS).sub_(1).floor_().clamp_(0, UNSIGNED_STEPS - 2)
    low, high = ((below + k).div_(UNSIGNED_STEPS).square_().square_() for k in (1, 2))
    up = (x.sub_(low).div_(high.sub_(low)) > uniform).to(x.dtype)
    return below.add_(up).to(torch.uint8), scale


def decode_unsigned(code: Tensor, scale: Tensor) -> Tensor:
    root = code.to(scale.dtype).add_(1)
    return root.square_().square_().mul_(scale * (1 / UNSIGNED_STEPS**4))


def _reciprocal(scale: Tensor) -> Tensor:
    # An all-zero block has scale 0: any code decodes to 0 there, but 0 * inf would make the code undefined.
    return scale.clamp(min=torch.finfo(scale.dtype).tiny).reciprocal_()
