"""Slabs: one slot of one technique for all matrices of a bucket, and the views a checkpoint is made of."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hina_kohya.core.state.codec import BFloat16, Codec, EightBit, Exact, Parts
from hina_kohya.core.technique import Slot
from hina_kohya.numerics.masks import keep_

Rows = slice | Tensor  # a run of rows, or their indices where some parameters have no gradient this step
_EXACT, _BF16 = Exact(), BFloat16()
_BEHIND_THE_CODEC = (Slot.SIGNED, Slot.UNSIGNED, Slot.FACTOR)


class Slab:
    """Rows are matrices. ``key`` is ``technique.slot``; a part of an encoded value is ``technique.slot.part``."""

    def __init__(self, key: str, slot: Slot, codec: Codec, shape: tuple[int, int, int], like: Tensor):
        count, self.m, self.n = shape
        self.key, self.slot = key, slot
        self.codec = codec if slot in _BEHIND_THE_CODEC else _EXACT
        if slot is Slot.SUM and not isinstance(codec, Exact):
            self.codec = _BF16  # eight bits would not see one step's share of a run
        self.rounds = self.codec.rounds(slot)
        self.parts = self.codec.empty(count, self.m, self.n, like, slot)

    def read(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """[k, m, n] in ``dtype``; possibly a view of the slab, so not to be written into."""
        parts = {name: part[rows] for name, part in self.parts.items()}
        return self.codec.decode(parts, self.m, self.n, self.slot).to(dtype)

    def write(self, rows: Rows, x: Tensor, seed: Tensor | None, valid: Tensor, before: Tensor) -> None:
        """``before`` is what was read of these rows; those that are not ``valid`` [k, 1, 1] keep every bit of it."""
        kept = {name: part[rows] for name, part in self.parts.items()}
        for name, part in self.codec.encode(x, self.slot, seed, (before, kept)).items():
            new, old = part.to(kept[name].dtype), kept[name]
            if isinstance(rows, slice):
                keep_(new, old, valid)
            else:
                self.parts[name][rows] = torch.where(valid, new, old)

    def views(self, row: int, shape: torch.Size) -> dict[str, Tensor]:
        """What ``optimizer.state[p]`` shows of one row: views, so that nothing is stored twice."""
        whole = self.parts[""][row]
        views = {self.key: whole.view(shape) if whole.numel() == shape.numel() and not self._packed else whole}
        return views | {f"{self.key}.{name}": part[row] for name, part in self.parts.items() if name}

    def adopt(self, row: int, saved: Parts) -> None:
        """Takes over a saved row: byte for byte if it was kept the same way, through its values if not."""
        if all(name in saved and saved[name].dtype == part.dtype for name, part in self.parts.items()):
            for name, part in self.parts.items():
                part[row].copy_(saved[name].view(part[row].shape))
            return
        values = decoded(saved, self.m, self.n, self.slot, self.parts[""].device).unsqueeze(0)
        seed = torch.zeros(1, 1, 1, dtype=torch.int32, device=values.device)
        for name, part in self.codec.encode(values.to(torch.float32), self.slot, seed).items():
            self.parts[name][row].copy_(part[0])

    def nbytes(self) -> int:
        return sum(part.untyped_storage().nbytes() for part in self.parts.values())

    @property
    def _packed(self) -> bool:
        return isinstance(self.codec, EightBit)


def saved_parts(state: Mapping[str, object], key: str) -> Parts:
    """The parts of one slot in a parameter's saved state; empty if it has none."""
    found = {"": state.get(key), "scale": state.get(f"{key}.scale")}
    return {name: part for name, part in found.items() if isinstance(part, Tensor)}


def decoded(saved: Parts, m: int, n: int, slot: Slot, device: torch.device) -> Tensor:
    """[m, n] of a saved row."""
    row = {name: part.unsqueeze(0).to(device) for name, part in saved.items()}
    return _codec_of(saved).decode(row, m, n, slot).view(m, n)


def _codec_of(saved: Parts) -> Codec:
    if "scale" in saved:
        return EightBit()
    return BFloat16() if saved[""].dtype == torch.bfloat16 else _EXACT
