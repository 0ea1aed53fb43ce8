"""How state is stored: fp32, bf16 with stochastic rounding, or 8-bit in blocks that never straddle matrices."""

import math
from abc import ABC, abstractmethod
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from hina_kohya.core.technique import Slot, Technique
from hina_kohya.numerics import companding
from hina_kohya.numerics.pieces import in_pieces
from hina_kohya.numerics.rounding import random_bits16, stochastic_round_bf16
from hina_kohya.text import did_you_mean

Parts = dict[str, Tensor]  # what is kept of N matrices: "" for the values, "scale" for what they are relative to
Before = tuple[Tensor, Parts]  # values, and the parts that they were decoded from


class Codec(ABC):
    """Values [N, m, n] to and from what is kept of them. Writing may round, by ``seed`` [N, 1, 1]."""

    name: ClassVar[str]

    @abstractmethod
    def empty(self, count: int, m: int, n: int, like: Tensor, slot: Slot) -> Parts:
        """Parts of ``count`` all-zero matrices on the device and in the compute dtype of ``like``."""

    @abstractmethod
    def decode(self, parts: Parts, m: int, n: int, slot: Slot) -> Tensor: ...

    @abstractmethod
    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None, before: Before | None = None) -> Parts:
        """``before`` is what x takes the place of; without it x stands alone."""

    def rounds(self, slot: Slot) -> bool:
        """Whether writing needs a seed."""
        return False

    def checked(self, technique: Technique) -> Technique:
        """The same; raises ValueError for one whose averages move too slowly to be kept this way."""
        return technique


class Exact(Codec):
    """The compute dtype itself: fp32, or fp64 for fp64 parameters."""

    name = "fp32"

    def empty(self, count: int, m: int, n: int, like: Tensor, slot: Slot) -> Parts:
        return {"": torch.zeros(count, m, n, dtype=like.dtype, device=like.device)}

    def decode(self, parts: Parts, m: int, n: int, slot: Slot) -> Tensor:
        return parts[""]

    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None, before: Before | None = None) -> Parts:
        return {"": x}


class BFloat16(Codec):
    """bf16 written with stochastic rounding: rounding to nearest would freeze an average whose rate is below 2^-8."""

    name = "bf16"

    def empty(self, count: int, m: int, n: int, like: Tensor, slot: Slot) -> Parts:
        return {"": torch.zeros(count, m, n, dtype=torch.bfloat16, device=like.device)}

    def decode(self, parts: Parts, m: int, n: int, slot: Slot) -> Tensor:
        return parts[""].to(torch.float32)

    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None, before: Before | None = None) -> Parts:
        assert seed is not None
        return {"": stochastic_round_bf16(x.to(torch.float32), seed)}

    def rounds(self, slot: Slot) -> bool:
        return True


class EightBit(Codec):
    """One byte a value and one fp32 scale a block of at most 256 values.

    A matrix of k values has ceil(k / 256) equal blocks, padded by less than one value a block; so a tensor of 16
    elements is 8-bit too, and no block holds values of two matrices. The codes are those of `numerics.companding`.
    Averages of squares are rounded stochastically, others to the nearest code; these, and what is read, go through
    bitsandbytes' kernels on a GPU, with the same codes as a table.
    """

    name = "8bit"
    block: ClassVar[int] = 256
    slowest: ClassVar[float] = 0.995  # decay of an average that nearest codes still follow

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
        scale = parts["scale"]
        x = in_pieces(lambda code, i: _decoded(code, scale[:, i : i + code.shape[1]], slot), parts[""], dim=1)
        return x.flatten(1)[:, : m * n].unflatten(1, (m, n))

    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None, before: Before | None = None) -> Parts:
        x = self._blocks(x.to(torch.float32))
        if slot is Slot.SIGNED:
            if x.is_cuda:
                return dict(zip(("", "scale"), _bitsandbytes_encode(x), strict=True))
            scale = in_pieces(lambda piece, _: companding.largest(piece), x, dim=1)
            encode = lambda piece, i: companding.encode_signed(piece, scale[:, i : i + piece.shape[1]])  # noqa: E731
            return {"": in_pieces(encode, x, dim=1), "scale": scale}
        assert seed is not None
        scale = x.amax(dim=-1, keepdim=True)
        if before is not None:
            old = self._blocks(before[0])
            least = in_pieces(lambda piece, i: companding.least_ratio(piece, old[:, i : i + piece.shape[1]]), x, dim=1)
            scale = companding.falling_scale(scale, least, before[1]["scale"])

        def encoded(piece: Tensor, i: int) -> Tensor:
            noise = random_bits16(seed, piece.shape, i * piece.shape[2])
            return companding.encode_unsigned(piece, scale[:, i : i + piece.shape[1]], noise)

        return {"": in_pieces(encoded, x, dim=1), "scale": scale}

    def _blocks(self, x: Tensor) -> Tensor:
        """[N, nb, bs] of [N, m, n]; where there is nothing the last value stands again."""
        blocks, size = self.layout(*x.shape[-2:])
        x = x.flatten(1)
        if padding := blocks * size - x.shape[1]:
            x = torch.nn.functional.pad(x.unsqueeze(0), (0, padding), mode="replicate").squeeze(0)
        return x.unflatten(1, (blocks, size))

    def rounds(self, slot: Slot) -> bool:
        return slot is not Slot.SIGNED

    def checked(self, technique: Technique) -> Technique:
        if Slot.SIGNED in technique.kept().values() and technique.memory > self.slowest:
            raise ValueError(
                f"{technique.name} keeps an average with decay {technique.memory:g}, and 8 bits follow one of up to "
                f"{self.slowest:g}; use state='bf16' or 'fp32' (of an optimizer whose name does not end in 8bit)"
            )
        return technique


def _decoded(code: Tensor, scale: Tensor, slot: Slot) -> Tensor:
    if code.is_cuda:
        return _bitsandbytes_decode(code, scale, slot)
    return (companding.decode_signed if slot is Slot.SIGNED else companding.decode_unsigned)(code, scale)


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


def _bitsandbytes_encode(x: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_blockwise  # noqa: PLC0415

    padded, size = _kernel_blocks(x)
    code, state = quantize_blockwise(A=padded.contiguous(), code=_table(Slot.SIGNED, x.device), blocksize=size)
    code = code.view(padded.shape)[..., : x.shape[-1]]
    return (code.to(torch.int16) - 128).to(torch.int8), state.absmax.view(*x.shape[:-1], 1)


def _bitsandbytes_decode(code: Tensor, scale: Tensor, slot: Slot) -> Tensor:
    from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415

    if slot is Slot.SIGNED:
        code = (code.to(torch.int16) + 128).to(torch.uint8)
    padded, size = _kernel_blocks(code)
    x = dequantize_blockwise(
        A=padded.contiguous(), absmax=scale.flatten(), code=_table(slot, code.device), blocksize=size
    )
    return x.view(padded.shape)[..., : code.shape[-1]]


def dequantized(code: Tensor, absmax: Tensor, table: Tensor) -> Tensor:
    """fp32 of what a bitsandbytes optimizer keeps in blocks of 256."""
    from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415

    return dequantize_blockwise(A=code, absmax=absmax, code=table, blocksize=256).view(code.shape)


def quantized(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, absmax), as `dequantized` takes them."""
    from bitsandbytes.functional import quantize_blockwise  # noqa: PLC0415

    code, state = quantize_blockwise(A=x, code=table, blocksize=256)
    return code.view(x.shape), state.absmax


CODECS: dict[str, Codec] = {codec.name: codec for codec in (EightBit(), BFloat16(), Exact())}


def codec(name: str) -> Codec:
    if name not in CODECS:
        raise ValueError(f"state = {name!r} is no way to store state; {did_you_mean(str(name), CODECS)}")
    return CODECS[name]
