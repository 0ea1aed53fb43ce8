"""How many directions each module keeps: one water level over all of them, within the bytes of the file.

What a direction is worth is its singular value in the metric of the loss (`balance`), so the best r of a module are its
first r, and the level is that of `hina-kohya resize`, which does the same to a finished file.
"""

import dataclasses as dc
import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from hina_kohya.adlrns.adapter.balance import balanced, strengths
from hina_kohya.loras import level
from hina_kohya.loras.writing import entry_bytes

VALUE = torch.float16  # or bfloat16: what files are saved in
FRAME = 64  # bytes of a file besides its tensors and their names, without the trainer's metadata
# Layers of one rank are stepped together: few different ranks are few launches, and lost nothing where it was tried.
STEPS = tuple(1 << n for n in range(16))
_LARGEST = 10**10  # a file whose offsets have as many digits


@dc.dataclass(frozen=True)
class Sums:
    """What a module's steps that measured have seen. grams: [2, R, R], of `balance`; positions: that were summed."""

    grams: Tensor
    positions: float


@dc.dataclass(frozen=True)
class Candidates:
    """Directions of a module, the best first. basis: [2, R, R] of `balance`; spectrum: their worth and their bytes."""

    basis: Tensor
    spectrum: level.Spectrum


def candidates(name: str, up: Tensor, down: Tensor, sums: Sums, least: int, most: int) -> Candidates:
    """up: [out, R, 1..], down: [R, in, k..]. Directions of which nothing is known stay as they are, worth nothing."""
    rank = len(down)
    basis, values = torch.eye(rank, dtype=torch.float64).expand(2, -1, -1), torch.zeros(rank, dtype=torch.float64)
    if (change := balanced(sums.grams, down.flatten(1))) is not None:
        basis, values = change, strengths(change, sums.grams) / sums.positions**0.5
    return Candidates(basis, spectrum(name, up, down, values, least, most))


def spectrum(name: str, up: Tensor, down: Tensor, values: Tensor, least: int, most: int) -> level.Spectrum:
    """values: [R]; of them the first `most` can be kept, and the first `least` are; between, a power of two."""
    most = min(most, len(down))
    least = min(least, most)
    steps = (*(rank for rank in STEPS if least < rank < most), *([most] if least < most else []))
    return level.Spectrum(values[:most], direction_bytes(up, down), module_bytes(name, up, down), least, steps)


def ranks(spectra: Sequence[level.Spectrum], budget: float) -> list[int]:
    """Of each module; one for all where nothing is known of any."""
    if any(bool(each.values.any()) for each in spectra):
        return level.allocate(spectra, budget)
    rank = next(rank for rank in itertools.count() if rank + 1 > max(len(each.values) for each in spectra)
                or of_rank(spectra, rank + 1) > budget)  # fmt: skip
    return [min(max(rank, each.least), len(each.values)) for each in spectra]


def direction_bytes(up: Tensor, down: Tensor) -> int:
    """Of a column of up and a row of down."""
    return (up[:, 0].numel() + down[0].numel()) * VALUE.itemsize


def module_bytes(name: str, up: Tensor, down: Tensor) -> int:
    """Of names, shapes and alpha."""
    shapes = {"lora_up.weight": tuple(up.shape), "lora_down.weight": tuple(down.shape), "alpha": ()}
    return VALUE.itemsize + sum(entry_bytes(f"{name}.{key}", shape, VALUE, _LARGEST) for key, shape in shapes.items())


def other_bytes(modules: Iterable[nn.Module]) -> int:
    """Of modules of other algorithms, which are in the file whole."""
    tensors = [(f"{lora.lora_name}.{key}", each) for lora in modules for key, each in lora.state_dict().items()]
    return sum(entry_bytes(key, tuple(each.shape), VALUE, _LARGEST) + each.numel() * VALUE.itemsize
               for key, each in tensors)  # fmt: skip


def of_rank(spectra: Sequence[level.Spectrum], rank: float) -> float:
    """Bytes of a LoRA of one rank, which need not be whole: a budget for `ranks`."""
    return sum(each.entry + min(rank, len(each.values)) * each.cost for each in spectra)


def of_ranks(spectra: Sequence[level.Spectrum], ranks: Sequence[int]) -> int:
    return sum(each.bytes(rank) for each, rank in zip(spectra, ranks, strict=True))
