r"""One water level over all modules: the directions that keep most per byte, whichever module they are in.

A direction of module l keeps s^2 and costs as many bytes as a column of up and a row of down; the first one of a module
also pays for the module's names in the file. Directions of a module are taken in order, so the first few count as one
where their mean is better (the upper concave hull). What is kept is then the most there is at its own number of bytes.
"""

import dataclasses as dc
import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from hina_kohya.loras.errors import AdapterError


@dc.dataclass(frozen=True)
class Spectrum:
    """What there is to choose from in a module.

    values : [K] singular values, the largest first
    cost   : bytes of a direction
    entry  : bytes of having any
    least  : directions that are kept in any case; 1 for a DoRA, whose magnitudes act without a direction, too
    steps  : rising ranks above `least` that may be chosen; none: any rank
    """

    values: Tensor
    cost: int
    entry: int = 0
    least: int = 0
    steps: tuple[int, ...] = ()

    def bytes(self, rank: int) -> int:
        return self.entry + rank * self.cost if rank else 0

    def floor(self, rank: int) -> int:
        """The largest rank up to this one that may be chosen."""
        return max((step for step in (self.least, *self.steps) if step <= rank), default=0) if self.steps else rank


def allocate(spectra: Sequence[Spectrum], budget: float) -> list[int]:
    """The rank of each module, in at most `budget` bytes; what the level leaves over buys the best that still fits."""
    ranks = [spectrum.least for spectrum in spectra]
    spent = sum(spectrum.bytes(spectrum.least) for spectrum in spectra)
    for _, module, count in _blocks(spectra):
        spectrum = spectra[module]
        room = budget - spent - (0 if ranks[module] else spectrum.entry)
        rank = spectrum.floor(ranks[module] + min(count, int(room // spectrum.cost)))  # of a block, what fits
        if rank > ranks[module]:
            spent += spectrum.bytes(rank) - spectrum.bytes(ranks[module])
            ranks[module] = rank
    return ranks


def keeping(spectra: Sequence[Spectrum], share: float) -> list[int]:
    """The rank of each module with which at least `share` of the energy, the sum of all s^2, stays, in fewest bytes.

    Raises AdapterError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise AdapterError(f"--keep {share:g} must be above 0 and at most 1: the share of the energy that stays")
    if share == 1:
        return [max(len(spectrum.values), spectrum.least) for spectrum in spectra]
    total = sum(float(spectrum.values.square().sum()) for spectrum in spectra)
    ranks = [spectrum.least for spectrum in spectra]
    kept = sum(float(spectrum.values[: spectrum.least].square().sum()) for spectrum in spectra)
    for gain, module, count in _blocks(spectra):
        if kept >= share * total:
            break
        ranks[module] += count
        kept += gain
    return ranks


def energy(spectra: Sequence[Spectrum], ranks: Sequence[int]) -> float:
    """The share of the sum of all s^2 that these ranks keep; 1 for files of zeros."""
    total = sum(float(spectrum.values.square().sum()) for spectrum in spectra)
    kept = sum(float(spectrum.values[:rank].square().sum()) for spectrum, rank in zip(spectra, ranks, strict=True))
    return kept / total if total else 1.0


def _blocks(spectra: Sequence[Spectrum]) -> list[tuple[float, int, int]]:
    """(energy, module, number of directions), by energy per byte, the most first; a module's blocks in their order."""
    heap = []
    for module, spectrum in enumerate(spectra):
        if len(spectrum.values) > spectrum.least:
            blocks = list(_hull(spectrum))
            heap.append((-blocks[0][1], module, 0, blocks))
    heapq.heapify(heap)
    ordered = []
    while heap:
        _, module, place, blocks = heap[0]
        gain, _, count = blocks[place]
        ordered.append((gain, module, count))
        if place + 1 < len(blocks):
            heapq.heapreplace(heap, (-blocks[place + 1][1], module, place + 1, blocks))
        else:
            heapq.heappop(heap)
    return ordered


def _hull(spectrum: Spectrum) -> list[tuple[float, float, int]]:
    """(energy, energy per byte, directions): first the prefix of the best mean, then from one rank to the next."""
    energies = spectrum.values[spectrum.least :].double().square()
    ends = torch.tensor([step - spectrum.least for step in spectrum.steps] or range(1, len(energies) + 1))
    ends = ends[ends <= len(energies)]
    counts = ends.diff(prepend=ends.new_zeros(1))
    block = torch.repeat_interleave(torch.arange(len(ends)), counts)  # of each direction
    gains = energies.new_zeros(len(ends)).index_add_(0, block, energies[: len(block)])
    ratio = gains.cumsum(0) / (spectrum.cost * ends + (0 if spectrum.least else spectrum.entry))
    first = int(ratio.argmax())
    rest = zip(gains[first + 1 :].tolist(), counts[first + 1 :].tolist(), strict=True)
    return [
        (float(gains[: first + 1].sum()), float(ratio[first]), int(ends[first])),
        *((gain, gain / (spectrum.cost * count), count) for gain, count in rest),
    ]
