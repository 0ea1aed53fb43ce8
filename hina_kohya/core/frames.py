"""Frames: small matrices of very many shapes, stepped together as if they had a few.

No technique lets rows and columns without a gradient change another entry's step, so a matrix may be stepped in the
corner of a larger one of zeros. That costs arithmetic, and saves the launches of a step for every shape. What is this
small is kept in fp32 whatever the codec, as bitsandbytes does: an 8-bit block would go by the frame, not the matrix.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hina_kohya.core.bucket import Bucket, Key, matrix_shape
from hina_kohya.core.parameter import Parameter
from hina_kohya.core.state.codec import Codec, Exact, Parts
from hina_kohya.core.state.slab import Slab, decoded
from hina_kohya.core.technique import Slot, Technique

SMALL = 1 << 12  # elements of the largest matrix that is framed
MANY = 64  # shapes of small matrices that a model may have without frames

Shape = tuple[int, int]


def buckets(by_key: Mapping[Key, Sequence[int]], parameters: Sequence[Parameter], codec: Codec) -> list[Bucket]:
    """A bucket for each key, or for each frame where there would be too many."""
    frames: dict[Key, list[int]] = defaultdict(list)
    singles: dict[Key, list[int]] = {}
    partners = {
        other
        for key, rows in by_key.items()
        for t in key.chain
        for row in rows
        for other in t.partners(parameters[row].member)
    }  # by a partner, which expects its shape
    for key, indices in by_key.items():
        if (frame := _frame(key)) and partners.isdisjoint(indices):
            frames[frame].extend(indices)
        else:
            singles[key] = list(indices)
    if len(by_key) - len(singles) <= MANY:
        frames, singles = {}, {key: list(indices) for key, indices in by_key.items()}
    return [
        kind(key, indices, [parameters[i] for i in indices], each)
        for kind, each, table in ((Bucket, codec, singles), (Framed, Exact(), frames))
        for key, indices in table.items()
    ]


def _frame(key: Key) -> Key | None:
    """What parameters of this key are stepped as, if they can be."""
    own = matrix_shape(key.shape)
    if key.shape.numel() > SMALL or not key.chain:
        return None
    m, n = (_rounded_up(side) for side in own)
    if m == n and own[0] != own[1]:  # which side is the longer one matters to NorMuon
        m, n = (m, _rounded_up(n + 1)) if own[0] < own[1] else (_rounded_up(m + 1), n)
    frame = m, n
    fits = all(_pads(technique, own, frame) for technique in key.chain)
    return Key(torch.Size(frame), key.dtype, key.device, key.chain, None) if fits else None


def _rounded_up(side: int) -> int:
    """1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << (side - 1).bit_length()
    return power * 3 // 4 if side <= power * 3 // 4 and power >= 4 else power


def _pads(technique: Technique, own: Shape, frame: Shape) -> bool:
    """Whether zeros may be appended, and what is kept for a matrix is the corner of what is kept for its frame."""
    if not technique.pads or technique.couples or Slot.CODE in technique.kept().values():
        return False
    columns = {(own[1], frame[1]), (max(own), max(frame))}
    for name in technique.kept():
        (a, b), (wide_a, wide_b) = (technique.slot_shape(name, *shape, None) for shape in (own, frame))
        if not (a == wide_a or (a, wide_a) == (own[0], frame[0])) or not (b == wide_b or (b, wide_b) in columns):
            return False
    return True


class Framed(Bucket):
    """Parameters that are smaller than the bucket's shape, each in the corner of a matrix of zeros."""

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        whole = torch.zeros(len(tensors), self.m, self.n, dtype=self.compute, device=self.key.device)
        here = [each.detach().reshape(matrix_shape(each.shape)) for each in self._here(tensors)]
        torch._foreach_copy_([_corner(row, each.shape) for row, each in zip(whole, here, strict=True)], here)
        return whole

    def _cut(self, values: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
        return [_corner(row, matrix_shape(p.shape)).reshape(p.shape) for row, p in zip(values, params, strict=True)]

    def _is_view(self, params: Sequence[Tensor]) -> bool:
        return False

    def _slab(self, technique: Technique, name: str, codec: Codec) -> "FramedSlab":
        slab = super()._slab(technique, name, codec)
        own = [technique.slot_shape(name, *matrix_shape(param.shape), None) for param in self.params]
        return FramedSlab(slab, own)


class FramedSlab(Slab):
    """A slab of frames that shows, and takes over, what belongs to the matrices in their corners."""

    def __init__(self, slab: Slab, own: Sequence[Shape]):
        self.__dict__.update(slab.__dict__)
        self.own = own

    def views(self, row: int, shape: torch.Size) -> dict[str, Tensor]:
        own = self.own[row]
        corner = _corner(self.parts[""][row], own)
        return {self.key: corner.view(shape) if math.prod(own) == shape.numel() else corner}

    def adopt(self, row: int, saved: Parts) -> None:
        corner = _corner(self.parts[""][row], self.own[row])
        corner.copy_(decoded(saved, *self.own[row], self.slot, corner.device))


def _corner(matrix: Tensor, shape: Sequence[int]) -> Tensor:
    return matrix[: shape[0], : shape[1]]
