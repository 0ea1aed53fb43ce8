"""How state is stored: fp32, bf16 with stochastic rounding, or 8-bit in blocks that never straddle matrices."""

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from hina_kohya.core.hyper import did_you_mean
from hina_kohya.core.technique import Slot
from hina_kohya.numerics import companding
from hina_kohya.numerics.rounding import random_bits16, stochastic_round_bf16

Parts = dict[str, Tensor]  # what is kept of N matrices: "" for the values, "scale" for what they are relative to


class Codec(ABC):
    """Values [N, m, n] to and from what is kept of them. Writing may round, by ``seed`` [N, 1, 1]."""

    name: ClassVar[str]

    @abstractmethod
    def empty(self, count: int, m: int, n: int, like: Tensor, slot: Slot) -> Parts:
        """Parts of ``count`` all-zero matrices on the device and in the compute dtype of ``like``."""

    @abstractmethod
    def decode(self, parts: Parts, m: int, n: int, slot: Slot) -> Tensor: ...

    @abstractmethod
    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None) -> Parts: ...

    def rounds(self, slot: Slot) -> bool:
        """Whether writing needs a seed."""
        return False


class Exact(Codec):
    """The compute dtype itself: fp32, or fp64 for fp64 parameters."""

    name = "fp32"

    def empty(self, count: int, m: int, n: int, like: Tensor, slot: Slot) -> Parts:
        return {"": torch.zeros(count, m, n, dtype=like.dtype, device=like.device)}

    def decode(self, parts: Parts, m: int, n: int, slot: Slot) -> Tensor:
        return parts[""]

    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None) -> Parts:
        return {"": x}


class BFloat16(Codec):
    """bf16 written with stochastic rounding: rounding to nearest would freeze an average whose rate is below 2^-8."""

    name = "bf16"

    def empty(self, count: int, m: int, n: int, like: Tensor, slot: Slot) -> Parts:
        return {"": torch.zeros(count, m, n, dtype=torch.bfloat16, device=like.device)}

    def decode(self, parts: Parts, m: int, n: int, slot: Slot) -> Tensor:
        return parts[""].to(torch.float32)

    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None) -> Parts:
        assert seed is not None
        return {"": stochastic_round_bf16(x.to(torch.float32), seed)}

    def rounds(self, slot: Slot) -> bool:
        return True


class EightBit(Codec):
    """One byte a value and one fp32 scale a block of at most 256 values.

    A matrix of k values has ceil(k / 256) equal blocks, padded by less than one value a block; so a tensor of 16
    elements is 8-bit too, and no block holds values of two matrices. The codes are those of `numerics.companding`;
    on a GPU they are made and read by bitsandbytes' kernels with the same codes as a table. Factors, which are few, are
    rounded stochastically.
    """

    name = "8bit"
    block: ClassVar[int] = 256

    def layout(self, m: int, n: int) -> tuple[int, int]:
        """(number of blocks, block size) of one matrix."""
        blocks = math.ceil(m * n / self.block)
        return blocks, math.ceil(m * n / blocks)

    def empty(self, count: int, m: int, n: int, like: Tensor, slot: Slot) -> Parts:
        blocks, size = self.layout(m, n)
        dtype = torch.int8 if slot is Slot.SIGNED else torch.uint8
        return {
            "": torch.zeros(count, blocks, size, dtype=dtype, device=like.device),
            "scale": torch.zeros(count, blocks, 1, dtype=torch.float32, device=like.device),
        }

    def decode(self, parts: Parts, m: int, n: int, slot: Slot) -> Tensor:
        code, scale = parts[""], parts["scale"]
        if code.is_cuda:
            x = _bitsandbytes_decode(code, scale, slot)
        elif slot is Slot.SIGNED:
            x = companding.decode_signed(code, scale)
        else:
            x = companding.decode_unsigned(code, scale)
        return x.flatten(1)[:, : m * n].unflatten(1, (m, n))

    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None) -> Parts:
        blocks, size = self.layout(*x.shape[-2:])
        x = x.to(torch.float32).flatten(1)
        if padding := blocks * size - x.shape[1]:
            x = torch.nn.functional.pad(x, (0, padding))
        x = x.unflatten(1, (blocks, size))
        if self.rounds(slot):
            assert seed is not None
            code, scale = companding.encode_unsigned_stochastic(x, random_bits16(seed, x.shape) * 2.0**-16)
        elif x.is_cuda:
            code, scale = _bitsandbytes_encode(x, slot)
        else:
            code, scale = (companding.encode_signed if slot is Slot.SIGNED else companding.encode_unsigned)(x)
        return {"": code, "scale": scale}

    def rounds(self, slot: Slot) -> bool:
        # A factor is a mean of many squares, so it moves by far less than a code a step: to nearest it would freeze.
        return slot is Slot.FACTOR


@cache
def _table(slot: Slot, device: torch.device) -> Tensor:
    """The 256 values of a code, ascending in [-1, 1] or (0, 1], as bitsandbytes wants them."""
    if slot is Slot.SIGNED:
        # int8 -128 is never written; its place keeps the table at 256 entries and ascending.
        code, one = torch.arange(-128, 128, device=device), torch.ones(1, device=device)
        return companding.decode_signed(code, one)
    return companding.decode_unsigned(torch.arange(256, device=device), torch.ones(1, device=device))


def _kernel_blocks(x: Tensor) -> tuple[Tensor, int]:
    """Blocks padded to a size that bitsandbytes' kernels know: 64, 128 or 256."""
    size = max(64, 1 << (x.shape[-1] - 1).bit_length())
    return torch.nn.functional.pad(x, (0, size - x.shape[-1])), size


def _bitsandbytes_encode(x: Tensor, slot: Slot) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_blockwise  # noqa: PLC0415

    padded, size = _kernel_blocks(x)
    code, state = quantize_blockwise(A=padded.contiguous(), code=_table(slot, x.device), blocksize=size)
    code = code.view(padded.shape)[..., : x.shape[-1]]
    if slot is Slot.SIGNED:
        code = (code.to(torch.int16) - 128).to(torch.int8)
    return code, state.absmax.view(*x.shape[:-1], 1)


def _bitsandbytes_decode(code: Tensor, scale: Tensor, slot: Slot) -> Tensor:
    from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415

    if slot is Slot.SIGNED:
        code = (code.to(torch.int16) + 128).to(torch.uint8)
    padded, size = _kernel_blocks(code)
    x = dequantize_blockwise(
        A=padded.contiguous(), absmax=scale.flatten(), code=_table(slot, code.device), blocksize=size
    )
    return x.view(padded.shape)[..., : code.shape[-1]]


CODECS: dict[str, Codec] = {codec.name: codec for codec in (EightBit(), BFloat16(), Exact())}


def codec(name: str) -> Codec:
    if name not in CODECS:
        raise ValueError(f"state = {name!r} is no way to store state; {did_you_mean(str(name), CODECS)}")
    return CODECS[name]
