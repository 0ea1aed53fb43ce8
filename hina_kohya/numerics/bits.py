"""Numbers 0 and 1, eight to a byte, the byte as a whole number of the compute dtype: exact up to 2^24."""

import torch
from torch import Tensor


def _powers(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=like.dtype, device=like.device).exp2_().round_()


def packed(n: int) -> int:
    """Bytes of n bits."""
    return (n + 7) // 8


def pack(x: Tensor) -> Tensor:
    """[..., n] of 0 and 1 to [..., ceil(n / 8)], the first bit lowest."""
    x = torch.nn.functional.pad(x, (0, -x.shape[-1] % 8))
    return (x.unflatten(-1, (-1, 8)) * _powers(x)).sum(dim=-1)


def unpack(x: Tensor, n: int) -> Tensor:
    """The first n bits of each row."""
    return (x.unsqueeze(-1) / _powers(x)).floor_().remainder_(2).flatten(-2)[..., :n]
