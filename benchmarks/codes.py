"""Codes for moments, for the benchmarks to compare, and a moment that is kept in one of them."""

import abc
import dataclasses as dc
import functools
import math
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core.state.codec import Codec, EightBit, Parts
from hina_kohya.core.technique import Slot
from hina_kohya.numerics import companding

BLOCK = EightBit.block


class RenewedScale(EightBit):
    """What ships, with the scale of a block made anew at every step, as is usual."""

    def encode(self, x: Tensor, slot: Slot, seed: Tensor | None, before: Any = None) -> Parts:
        return super().encode(x, slot, seed)


class Blockwise(abc.ABC):
    """A code for blocks [nb, bs] that knows neither the step nor what it wrote before."""

    @abc.abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    @abc.abstractmethod
    def decode(self, code: Tensor, scale: Tensor) -> Tensor: ...

    def stored(self, x: Tensor) -> Tensor:
        """x [N, m, n] as it is read back."""
        blocks = EightBit()._blocks(x)
        back = self.decode(*self.encode(blocks.flatten(0, 1))).view(blocks.shape)
        return back.flatten(1)[:, : math.prod(x.shape[1:])].view(x.shape)


@dc.dataclass(frozen=True)
class Root(Blockwise):
    """Equally spaced after a root of squares, or, with a sign, of averages."""

    power: int
    signed: bool
    stochastic: bool

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = companding.largest(x).clamp(min=1e-38)
        exact = (x.abs() / scale) ** (1 / self.power) * self._levels() - self._first()
        code = exact.round()
        if self.stochastic:
            below = exact.floor().clamp(0, self._levels() - 2)
            low, high = (self.decode(below + k, scale).abs() for k in (0, 1))
            code = below + ((x.abs() - low) / (high - low) > torch.rand(low.shape)).float()
        return (code.clamp(min=0) * x.sign() if self.signed else code.clamp(min=0)), scale

    def decode(self, code: Tensor, scale: Tensor) -> Tensor:
        size = ((code.abs() + self._first()) / self._levels()) ** self.power * scale
        return size * code.sign() if self.signed else size

    def _levels(self) -> int:
        return 127 if self.signed else 256

    def _first(self) -> int:
        return 0 if self.signed else 1


@dc.dataclass(frozen=True)
class Nearest(Blockwise):
    """The nearest of 256 values, found exactly: what the map can do, whatever the kernel."""

    values: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = companding.largest(x)
        middles = (self.values[1:].double() + self.values[:-1].double()) / 2
        relative = x.double() / scale.clamp(min=torch.finfo(x.dtype).tiny)
        return torch.bucketize(relative, middles, out_int32=True).to(torch.uint8), scale

    def decode(self, code: Tensor, scale: Tensor) -> Tensor:
        return self.values[code.int()] * scale


@dc.dataclass(frozen=True)
class LookUp(Blockwise):
    """bitsandbytes' kernel for this device. On the CPU it is coarse: near zero it misses the nearest value by far."""

    values: Tensor

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from bitsandbytes.functional import quantize_blockwise  # noqa: PLC0415

        padded = torch.nn.functional.pad(x, (0, BLOCK - x.shape[-1])).contiguous()
        code, state = quantize_blockwise(A=padded, code=self.values, blocksize=BLOCK)
        return code.view(padded.shape)[..., : x.shape[-1]], state.absmax.view(*x.shape[:-1], 1)

    def decode(self, code: Tensor, scale: Tensor) -> Tensor:
        from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415

        padded = torch.nn.functional.pad(code, (0, BLOCK - code.shape[-1])).contiguous()
        x = dequantize_blockwise(A=padded, absmax=scale.flatten(), code=self.values, blocksize=BLOCK)
        return x.view(padded.shape)[..., : code.shape[-1]]


@functools.cache
def dynamic_table(*, signed: bool) -> Tensor:
    from bitsandbytes.functional import create_dynamic_map  # noqa: PLC0415

    return create_dynamic_map(signed=signed)


def root_table(*, signed: bool) -> Tensor:
    """The values that ship, smallest first."""
    if signed:
        return companding.decode_signed(torch.arange(-127, 128), torch.ones(1))
    return companding.decode_unsigned(torch.arange(256), torch.ones(1))


Kind = Codec | Blockwise


class Kept:
    """A moment [N, m, n] between two steps, as ``kind`` keeps it."""

    def __init__(self, like: Tensor, slot: Slot, kind: Kind):
        self.slot, self.kind = slot, kind
        self.value = torch.zeros_like(like)
        if isinstance(kind, Codec):
            self.parts = kind.empty(*like.shape, like, slot)

    def write(self, x: Tensor, step: int) -> None:
        if isinstance(self.kind, Blockwise):
            self.value = self.kind.stored(x)
            return
        seed = (torch.arange(len(x), dtype=torch.int32).view(-1, 1, 1) + 1) * 0x5EBCA77 + step * 0x1E3779B1 % (1 << 31)
        self.parts = self.kind.encode(x, self.slot, seed ^ self.slot, (self.value, self.parts))
        self.value = self.kind.decode(self.parts, *x.shape[1:], self.slot)
