"""Buckets: parameters of equal shape, dtype, device and chain, stepped together as [N, m, n]."""

import dataclasses as dc
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.chain import Chain
from hina_kohya.core.codec import Codec
from hina_kohya.core.roles import Member
from hina_kohya.core.slab import Rows, Slab
from hina_kohya.core.technique import Slot, Technique
from hina_kohya.numerics.rounding import stochastic_round_bf16

# Elements stepped at a time. On the CPU the step is bound by memory traffic, so a chunk has to stay in cache; on a
# GPU the bound is what temporaries may take.
CPU_CHUNK, GPU_CHUNK = 1 << 18, 1 << 23


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """[out, in * kh * kw] for matrices and convolutions, [1, n] for vectors and scalars."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


@dc.dataclass(frozen=True)
class Key:
    """What the parameters of one bucket have in common."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    chain: Chain
    partner: tuple[int, int] | None  # matrix shape of the partner, where state depends on it

    @classmethod
    def of(cls, param: Tensor, chain: Chain, partner: Tensor | None) -> "Key":
        shaped = any(technique.partner_shaped for technique in chain)
        partner_shape = matrix_shape(partner.shape) if shaped and partner is not None else None
        return cls(param.shape, param.dtype, param.device, chain, partner_shape)


class Bucket:
    def __init__(
        self, key: Key, indices: Sequence[int], params: Sequence[Tensor], members: Sequence[Member], codec: Codec
    ):
        self.key, self.chain, self.indices, self.params = key, key.chain, list(indices), list(params)
        self.m, self.n = matrix_shape(key.shape)
        self.compute = torch.float64 if key.dtype == torch.float64 else torch.float32
        limit = CPU_CHUNK if key.device.type == "cpu" else GPU_CHUNK
        self.chunk_rows = max(1, limit // key.shape.numel())
        self.steps = np.zeros(len(self), dtype=np.int32)
        self.decays = np.array([member.role.decays for member in members], dtype=np.bool_)
        self.ranks = np.array([member.cofactor_rank for member in members], dtype=np.int32)
        self.slabs = {(t.name, name): self._slab(t, name, codec) for t in self.chain for name in t.kept()}

    def __len__(self) -> int:
        return len(self.params)

    def _slab(self, technique: Technique, name: str, codec: Codec) -> Slab:
        slot = technique.slots[name]
        m, n = technique.slot_shape(name, self.m, self.n, self.key.partner)
        dtype = {Slot.ANCHOR: self.key.dtype, Slot.CODE: torch.uint8}.get(slot, self.compute)
        like = torch.empty(0, dtype=dtype, device=self.key.device)
        slab = Slab(f"{technique.name}.{name}", slot, codec, (len(self), m, n), like)
        if slot is Slot.ANCHOR:
            slab.parts[""].copy_(torch.stack(self.params).view(len(self), m, n))
        return slab

    def active_rows(self) -> list[int]:
        return [row for row, param in enumerate(self.params) if param.grad is not None]

    def chunks(self, rows: Sequence[int]) -> Iterator[tuple[Sequence[int], Rows]]:
        """Row numbers in runs that fit the chunk limit, each also as what indexes a slab."""
        for start in range(0, len(rows), self.chunk_rows):
            picked = rows[start : start + self.chunk_rows]
            if picked[-1] - picked[0] + 1 == len(picked):
                yield picked, slice(picked[0], picked[-1] + 1)
            else:
                yield picked, to_device(np.array(picked), self.key.device)

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """[k, m, n] in the compute dtype."""
        return torch.stack(list(tensors)).to(self.compute).view(len(tensors), self.m, self.n)

    def scatter(self, values: Tensor, picked: Sequence[int], seed: Tensor | None) -> None:
        """Writes [k, m, n] back into the parameters, rounding stochastically where they are bf16."""
        if seed is not None and self.key.dtype == torch.bfloat16:
            values = stochastic_round_bf16(values, seed)
        rows = values.reshape(len(picked), *self.key.shape).unbind(0)
        torch._foreach_copy_([self.params[row] for row in picked], list(rows))

    def seeds(self, picked: Sequence[int]) -> Tensor:
        """int32 [k, 1, 1] from step and parameter index: equal on all ranks and after any resume."""
        steps = self.steps[picked].astype(np.uint64)
        indices = np.array([self.indices[row] for row in picked], dtype=np.uint64) + np.uint64(1)
        mixed = (steps * np.uint64(0x9E3779B1)) ^ (indices * np.uint64(0x85EBCA77))
        return to_device((mixed & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32), self.key.device).view(
            -1, 1, 1
        )

    def fits(self) -> bool:
        """False once a parameter was moved or cast after the optimizer was built (`--full_bf16`, `prepare`)."""
        dtype, device = self.key.dtype, self.key.device
        return all(param.dtype == dtype and param.device == device for param in self.params)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array on the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
