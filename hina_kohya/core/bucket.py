"""Buckets: parameters of equal shape, dtype, device and chain, stepped together as [N, m, n]."""

import dataclasses as dc
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.chain import Chain
from hina_kohya.core.parameter import Parameter
from hina_kohya.core.signal import Signal
from hina_kohya.core.state.codec import Codec
from hina_kohya.core.state.slab import Rows, Slab
from hina_kohya.core.technique import Slot, Technique
from hina_kohya.numerics.masks import keep_
from hina_kohya.numerics.rounding import stochastic_round_bf16
from hina_kohya.parameters.roles import Member

if TYPE_CHECKING:
    from hina_kohya.core.rates import RowRates

# Elements stepped at a time. On the CPU the step is bound by memory traffic, so a chunk has to stay in cache; on a
# GPU the bound is what temporaries may take.
CPU_CHUNK, GPU_CHUNK = 1 << 18, 1 << 23
# Odd numbers that spread steps and parameter indices over 32 bits, signed as torch has them.
_STEP, _INDEX = 0x9E3779B1 - (1 << 32), 0x85EBCA77


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
    """``key.device`` is where the state lives, and where a parameter that is elsewhere for a while is stepped."""

    def __init__(self, key: Key, indices: Sequence[int], parameters: Sequence[Parameter], codec: Codec):
        self.key, self.chain, self.indices = key, key.chain, list(indices)
        self.params = [each.tensor for each in parameters]
        members = [each.member for each in parameters]
        self.m, self.n = matrix_shape(key.shape)
        self.compute = torch.float64 if key.dtype == torch.float64 else torch.float32
        limit = CPU_CHUNK if key.device.type == "cpu" else GPU_CHUNK
        self.chunk_rows = max(1, limit // key.shape.numel())
        self.steps: Tensor  # int32 [N], on the device, and
        self.tried: np.ndarray  # int32 [N]: slices of the plan's `counters`
        self.groups = np.array([each.group for each in parameters])  # numbers of their param groups
        self.decays = np.array([member.role.decays for member in members], dtype=np.bool_)
        self.products = self._read_products(members) if any(t.reads_product for t in self.chain) else ()
        salts = (np.array(self.indices, dtype=np.uint64) + np.uint64(1)) * np.uint64(_INDEX)
        self._salts = to_device((salts & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32), key.device)
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
            for rows, where in self.chunks(range(len(self))):
                slab.parts[""][where] = self.gather([self.params[row] for row in rows]).to(dtype)
        return slab

    def _read_products(self, members: Sequence[Member]) -> tuple[Tensor, ...]:
        """float64 [N, 1, 1] each: what a signal says of the product that each matrix is part of."""
        # In tensors of their own: torch.compile takes chance equalities of views' offsets and sizes for rules.
        scales = [1.0 if m.scale is None else m.scale for m in members]
        products = [
            (m.cofactor_rank, max(m.outer), m.rank, scale, max(1.0, scale**-0.5))
            for m, scale in zip(members, scales, strict=True)
        ]
        columns = (np.array(column, dtype=np.float64) for column in zip(*products, strict=True))
        return tuple(to_device(column, self.key.device).view(-1, 1, 1) for column in columns)

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
        """[k, m, n] in the compute dtype, whatever the layout of each; of a single one a view, if it can be."""
        here = self._here(tensors)
        stacked = here[0].detach().unsqueeze(0) if len(here) == 1 else torch.stack(here)
        return stacked.to(self.compute).reshape(len(tensors), self.m, self.n)

    def _here(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        device = self.key.device
        return [each if self._at_home(each) else each.to(device, non_blocking=True) for each in tensors]

    def _at_home(self, tensor: Tensor) -> bool:
        return tensor.device == self.key.device

    def scatter(
        self, values: Tensor, valid: Tensor, before: Tensor, picked: Sequence[int], seed: Tensor | None
    ) -> None:
        """Writes [k, m, n] back into the parameters, rounding stochastically where they are bf16.

        Those that are not ``valid`` [k, 1, 1] stay ``before``, what was gathered of them and is written over.
        """
        params = [self.params[row] for row in picked]
        keep_(values, before, valid)
        if self._is_view(params):
            return
        if seed is not None and self.key.dtype == torch.bfloat16:
            before = stochastic_round_bf16(before, seed)
        torch._foreach_copy_(params, self._cut(before, params))

    def _cut(self, values: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
        """[k, m, n] as ``params``, which they are of, are shaped."""
        return list(values.reshape(len(params), *self.key.shape).unbind(0))

    def _is_view(self, params: Sequence[Tensor]) -> bool:
        """Whether `gather` gave a view of them, so that what was written there is in the parameter."""
        param, *others = params
        return not others and param.dtype == self.compute and param.is_contiguous() and self._at_home(param)

    def signal(self, param: Tensor, grad: Tensor, rates: "RowRates", step: Tensor, where: Rows) -> Signal:
        """What flows through the chain for these rows: their parameters, gradients, rates and steps."""
        lr, decay = rates.both.unbind(0)
        s = Signal(param, param, grad, grad, lr, decay, step.double().view(-1, 1, 1))
        if rates.peak is None:
            return s
        return s.but(peak=rates.peak.clone(), product=tuple(x[where] for x in self.products))

    def seeds(self, where: Rows, step: Tensor) -> Tensor:
        """int32 [k, 1, 1] from step and parameter index: equal on all ranks and after any resume."""
        return (step * _STEP).bitwise_xor_(self._salts[where]).view(-1, 1, 1)

    def of_dtype(self) -> bool:
        """False once a parameter was cast after the plan was made (`--full_bf16`)."""
        return all(param.dtype == self.key.dtype for param in self.params)

    def elsewhere(self) -> bool:
        """Whether all parameters have moved to one other device: for good, or as a block that is swapped."""
        devices = {param.device for param in self.params}
        return len(devices) == 1 and self.key.device not in devices

    def nbytes(self) -> int:
        tables = (self.groups, self.decays, self._salts, *self.products)
        return sum(slab.nbytes() for slab in self.slabs.values()) + sum(table.nbytes for table in tables)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A small array on the device without waiting for it."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
