"""From statistics of the training backward to signed marginal gains, and from gains to the table of directions.

A direction's contribution to a layer's output is d = u (v . x). With a = <dL/dy, d> of a sample, its gain is what the
loss would rise by without it (kept: -a + d'Hd / 2) or fall by with it (not kept: -a - d'Hd / 2). The curvature is
Gauss-Newton's for a mean squared error: the gradient g of the model's output, a multiple of the residual, is a random
probe of it, so d'Hd / 2 = a^2 / |g|^2 for one sample, whatever the loss is multiplied by.

One sample's a^2 says little. Of h = v . x and its gradient, whose product is a, each alone is known far better, and the
product of their mean squares is the curvature if they are independent (K-FAC, arXiv 1503.05671, of one direction). It
says how the gains of a module compare, and what was measured of them says how large they are.
"""

import dataclasses as dc
import math

import torch
from torch import Tensor

from hina_kohya.adlrns.adapter.arguments import Settings
from hina_kohya.adlrns.water_level import Allocation, allocate

REFERENCE_LOSS = 0.1  # gains are in units of a loss of this size: gradients cannot tell a loss from its multiple
MEMORY = 0.5  # of what was known at the last refresh
MODULES, DIRECTIONS = 1.0, 0.1  # squares of the shares by which gains differ from what curvatures tell
ENOUGH = 8  # samples of a state, below which not even the noise is known
_LEAST = 0.1  # of gains to curvatures, which are their sizes at an optimum: less of them is noise
_ROUNDING = 1 + 1e-9  # a budget of 4 is to pay for rank 4, however the costs add up


@dc.dataclass(frozen=True)
class Measured:
    """A module's window. count [K]; gain, its variance over samples, energy (mean hidden^2), curvature: [K, R]."""

    count: Tensor
    gain: Tensor
    variance: Tensor
    energy: Tensor
    kronecker: Tensor


def columns(directional: Tensor, energy: Tensor, sensitivity: Tensor, positions: float) -> Tensor:
    """The rows a module adds to its window, [B, 2 + 4R]: 1, positions, a, a^2, and sums over positions of hidden^2 and
    of its gradient^2. Overflow makes a sample's 0."""
    rows = torch.cat([directional, directional.square(), energy, sensitivity], 1)
    count = torch.ones_like(directional[:, :1])
    return torch.cat([count, count * positions, rows], 1).where(rows.isfinite().all(1, keepdim=True), 0)


def measure(window: Tensor, output: Tensor, kept: Tensor) -> Measured:
    """window: sums [K, 2 + 4R]; output: sums [K, 3] of 1, |g|^2 and |g|^2 * outputs, g a sample's; kept: [K, R]."""
    count, rank = window[:, 0], kept.shape[1]
    positions, first, second, energy, sensitivity = (window[:, 1:] / count.clamp(min=1)[:, None]).split(
        [1, rank, rank, rank, rank], 1
    )
    samples, squares, scaled = output.unbind(1)
    if not scaled.sum() > 0:
        return Measured(torch.zeros_like(count), *(torch.zeros_like(first) for _ in range(4)))
    unit = (scaled.sum() / samples.sum() / (4 * REFERENCE_LOSS)).sqrt()
    tiny = torch.finfo(second.dtype).tiny
    square = (squares / samples.clamp(min=1)).clamp(min=tiny)[:, None]
    curvature, kronecker = second / square, energy * sensitivity / positions.clamp(min=tiny) / square
    gain = torch.where(kept, curvature, -curvature) - first / unit
    variance = (second - first.square()).clamp(min=0) / unit.square()
    return Measured(torch.where(samples > 0, count, 0), gain, variance, energy, kronecker)


class Ledger:
    """What is known of every direction: windows, older ones at a falling weight. Shapes [K, L, R], float64, CPU."""

    def __init__(self, states: int, ranks: list[int]):
        shape = (states, len(ranks), max(ranks))
        self.count = torch.zeros(shape[:2], dtype=torch.float64)
        self.gain, self.variance, self.energy, self.kronecker = (
            torch.zeros(shape, dtype=torch.float64) for _ in range(4)
        )
        self.exists = torch.arange(shape[2]) < torch.tensor(ranks)[:, None]

    def add(self, layer: int, seen: Measured) -> None:
        """A module of one state counts for all."""
        self.count[:, layer] = MEMORY * self.count[:, layer] + seen.count
        rank = seen.gain.shape[1]
        for name in ("gain", "variance", "energy", "kronecker"):
            total = getattr(self, name)[:, layer, :rank]
            total.mul_(MEMORY).add_(seen.count[:, None] * getattr(seen, name))

    def means(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(gain, its standard error, energy, Kronecker curvature); the error is infinite below ENOUGH samples."""
        count = self.count[..., None]
        error = (self.variance / count / (count - 1)).sqrt().where(count >= ENOUGH, math.inf)
        gain, energy, kronecker = (each / count.clamp(min=1) for each in (self.gain, self.energy, self.kronecker))
        return gain, error, energy, kronecker


def shrunk(gain: Tensor, error: Tensor, kronecker: Tensor, cost: Tensor, exists: Tensor) -> Tensor:
    """Gains [K, L, R], as far as they stand out of their noise; the rest is what their Kronecker curvature tells.

    error: standard errors, infinite where nothing is known; cost: [L]; exists: [L, R]. Empirical Bayes, two times: how
    gains compare with curvatures in a module is shrunk to how they do in all, and a gain to the product of the two.
    States that were not seen take the mean of the others; modules that were not seen have in every state the first
    directions before the later ones, and of gains per cost as large as those of the others.
    """
    known = exists & error.isfinite()
    gain, noise, kronecker = (each.where(known, 0) for each in (gain, error.square(), kronecker))
    whole = kronecker.sum((0, 2))
    level = (gain.sum() / whole.sum()).nan_to_num(1.0).clamp(min=_LEAST)
    strength = _towards(level * whole, gain.sum((0, 2)), noise.sum((0, 2)), MODULES) / whole
    strength = strength.nan_to_num(1.0).clamp(min=_LEAST * level)[:, None]
    believed = _towards(strength * kronecker, gain, noise, DIRECTIONS)
    states, rank = known.sum(0), gain.shape[-1]
    ratio = (believed / cost[:, None]).abs().sum() / known.sum() if known.any() else 1.0
    prior = ratio * cost[:, None] * (1 - torch.arange(rank, dtype=gain.dtype) / rank)
    elsewhere = (believed.sum(0) / states.clamp(min=1)).where(states > 0, prior)
    return believed.where(known, elsewhere).where(exists, -math.inf)


def _towards(expected: Tensor, seen: Tensor, noise: Tensor, variety: float) -> Tensor:
    """What is expected, give or take a share of sqrt(variety), corrected by what was seen with a variance `noise`."""
    spread = variety * expected.square()
    weight = (spread / (spread + noise)).nan_to_num(0.0)
    return expected + weight * (seen - expected)


def penalised(gain: Tensor, cost: Tensor, exists: Tensor, penalty: float) -> Tensor:
    """Gains of the objective loss + penalty * E, with E the cost as a share of all directions'.

    A direction that is kept adds cost_l / full to E: this is the derivative, and the table is its exact minimum.
    """
    return gain - penalty * (cost / (cost[:, None] * exists).sum())[:, None]


def choose(gain: Tensor, cost: Tensor, share: Tensor, settings: Settings) -> Allocation:
    """The table of `water_level.allocate`, with at most r_max directions a state and module."""
    assert isinstance(settings.budget, (int, float))
    assert settings.r_max is not None
    place = gain.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    gain = gain.masked_fill(place >= settings.r_max, -math.inf)
    return allocate(gain, cost, share, settings.budget * _ROUNDING, settings.r_min, settings.mode == "spend")
