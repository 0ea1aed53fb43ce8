"""Stochastic rounding to bfloat16 that needs no generator: a hash of (seed of the matrix, element) gives the bits.

A generator would have to be saved, and would tie the result to the order of calls; a counter-based hash rounds alike
on every rank, after every resume, and however matrices are bucketed.
"""

import torch
from torch import Tensor

from hina_kohya.numerics.pieces import in_pieces

# "lowbias32" (Wellons), an integer hash with measured avalanche bias 0.17: two rounds of xor-shift and multiply.
_MULTIPLY_1 = 0x7FEB352D
_MULTIPLY_2 = 0x846CA68B - (1 << 32)  # as a signed 32-bit number
_SPREAD = 0xC2B2AE3D - (1 << 32)  # a prime: neighbours start far apart, and not where another step or matrix does


def _xor_shift_(x: Tensor, bits: int) -> Tensor:
    # torch shifts int32 arithmetically; the mask makes it the logical shift the hash is defined with.
    return x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def _mixed(x: Tensor) -> Tensor:
    """The hash less its last xor-shift, which leaves the high bits alone, over x. Overflow wraps, as it wants."""
    return _xor_shift_(_xor_shift_(x, 16).mul_(_MULTIPLY_1), 15).mul_(_MULTIPLY_2)


def random_bits16(seed: Tensor, shape: torch.Size, start: int = 0) -> Tensor:
    """Uniform integers in [-32768, 32767] as int32 of ``shape`` [N, m, n]; ``seed`` is int32 [N, 1, 1].

    ``start`` is the number of the first element, where these are a part of a larger matrix.
    """
    end = start + shape[-2] * shape[-1]
    element = torch.arange(start, end, dtype=torch.int32, device=seed.device).mul_(_SPREAD)
    return _mixed(element.view(1, *shape[-2:]) + seed).bitwise_right_shift_(16)  # the high bits are the best mixed


def stochastic_round_bf16(x: Tensor, seed: Tensor) -> Tensor:
    """Rounds fp32 ``x`` [N, m, n] to bfloat16 up or down with the probability that makes the mean exact.

    Adds uniform noise to the 16 bits that bfloat16 drops and truncates (arXiv:2010.06192). Values that bfloat16 holds
    are kept; what is not finite becomes NaN.
    """
    flat = x.flatten(1).unsqueeze(1)  # [N, 1, m n]
    return in_pieces(lambda piece, start: _rounded(piece, seed, start), flat, dim=2).view(x.shape)


def _rounded(x: Tensor, seed: Tensor, start: int) -> Tensor:
    bits = random_bits16(seed, x.shape, start).bitwise_and_(0xFFFF).add_(x.contiguous().view(torch.int32))
    rounded = bits.bitwise_and_(-65536).view(torch.float32)
    # x - x is 0, or NaN where x is not finite: CUDA's NaN, 0x7fffffff, would overflow into a harmless-looking -0.
    return rounded.add_(x - x).to(torch.bfloat16)
