"""A model whose dynamic layers share the complexity cells of its input and one budget."""

import dataclasses as dc

from torch import Tensor, nn

from .complexity import LightweightScorer
from .grouped import CellContext, group
from .module import DynamicLowRankLayer


@dc.dataclass(frozen=True)
class Place:
    """A Linear or convolution of the model. macs: dense, of one sample; dense: why it was left so, "" if it was not."""

    name: str
    macs: float
    dense: str


class CompressedModel(nn.Module):
    """``model(x) -> y``; x is scored and sorted by cell once, y brought back to the order of x.

    x and y are tensors with samples along dimension 0, and so is whatever passes between the layers.
    dense_macs : of one sample, all Linear and convolution layers, before compression
    spent      : MACs of those layers in the last forward, all samples
    """

    def __init__(self, model: nn.Module, scorer: LightweightScorer, context: CellContext, places: list[Place]):
        super().__init__()
        self.model, self.scorer, self.context, self.places = model, scorer, context, places
        self.dense_macs = sum(place.macs for place in places)
        self._samples = 0

    @property
    def layers(self) -> dict[str, DynamicLowRankLayer]:
        found = self.model.named_modules()
        return {name: layer for name, layer in found if isinstance(layer, DynamicLowRankLayer)}

    @property
    def dense(self) -> dict[str, str]:
        """Layers that were left as they are, and why."""
        return {place.name: place.dense for place in self.places if place.dense}

    @property
    def _fixed(self) -> float:
        return sum(place.macs for place in self.places if place.dense)

    @property
    def least_budget(self) -> float:
        layers = self.layers
        least = sum(place.macs * layers[place.name].least_budget for place in self.places if not place.dense)
        return (100 * self._fixed + least) / self.dense_macs

    @property
    def planned(self) -> float:
        """Mean MACs of a sample over the calibration data, at the present ranks."""
        layers = self.layers
        return self._fixed + sum(
            place.macs * layers[place.name].planned / 100 for place in self.places if not place.dense
        )

    @property
    def spent(self) -> float:
        return self.context.macs + self._samples * self._fixed

    def set_budget(self, budget: float) -> None:
        """``budget``: percent of dense_macs, a mean over samples. Layers left dense take theirs; of the rest all others
        get the same mean rank, from r_min up to full. (The same percentage of its own MACs was up to 0.6 dB worse.)"""
        if not budget >= self.least_budget * (1 - 1e-12):
            least = f"{self.least_budget:.4g} %, the least"
            raise ValueError(f"budget = {budget:g} % is below {least}; raise it or lower r_min")
        layers = self.layers
        price = {
            p.name: p.macs * layers[p.name].direction_macs / layers[p.name].dense_macs
            for p in self.places
            if not p.dense
        }
        rest = budget / 100 * self.dense_macs - self._fixed

        def ranks(common: float) -> dict[str, float]:
            return {name: min(max(common, layers[name].r_min), layers[name].full_rank) for name in price}

        low, high = 0.0, float(max(layer.full_rank for layer in layers.values()))
        while high - low > 1e-9:
            middle = (low + high) / 2
            fits = sum(rank * price[name] for name, rank in ranks(middle).items()) <= rest
            low, high = (middle, high) if fits else (low, middle)
        for name, rank in ranks(low).items():
            layers[name].set_budget(rank * layers[name].direction_macs * 100 / layers[name].dense_macs * (1 + 1e-9))

    def forward(self, x: Tensor) -> Tensor:
        groups = group(self.scorer(x), self.scorer.edges)
        # Kept until the next forward: gradient checkpointing runs the layers again in the backward.
        self.context.groups, self.context.macs, self._samples = groups.sorted(), 0, len(x)
        y = self.model(groups.sort(x))
        if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
            raise ValueError(f"the model must return one tensor of {len(x)} samples; it returned {type(y).__name__}")
        return groups.unsort(y)
