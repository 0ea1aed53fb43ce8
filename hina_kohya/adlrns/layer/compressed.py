"""A model whose dynamic layers share the complexity cells of its input and one budget."""

import dataclasses as dc
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .complexity import LightweightScorer
from .grouped import CellContext, group
from .module import DynamicLowRankLayer
from .samples import names_of, output_samples, over_samples
from .sharing import Costs


@dc.dataclass(frozen=True)
class Place:
    """A Linear or convolution of the model. macs: dense, of one sample; dense: why it was left so, "" if it was not."""

    name: str
    macs: float
    dense: str


class CompressedModel(nn.Module):
    """``model(x, ...) -> y``; x is scored and sorted by cell once, y brought back to the order of x.

    x and y are tensors with samples along dimension 0, and so is whatever passes between the layers; y may also be a
    tuple, dictionary or dataclass of such. All other inputs are sorted with x, in tuples, lists and dictionaries, too,
    except those named in ``shared``, numbers and tensors of no dimension. Raises ValueError for one that is neither.
    dense_macs : of one sample, all Linear and convolution layers, before compression
    spent      : MACs of those layers in the last forward, all samples
    """

    def __init__(
        self,
        model: nn.Module,
        scorer: LightweightScorer,
        context: CellContext,
        places: list[Place],
        shared: Iterable[str] = (),
    ):
        super().__init__()
        self.model, self.scorer, self.context, self.places = model, scorer, context, places
        self.dense_macs = sum(place.macs for place in places)
        self.shared = frozenset(shared)
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
    def costs(self) -> Costs:
        layers = self.layers
        shared = [(layers[place.name], place.macs) for place in self.places if not place.dense]
        return Costs(shared, sum(place.macs for place in self.places if place.dense), apart=0.0)

    @property
    def least_budget(self) -> float:
        costs = self.costs
        return costs.percent(costs.least)

    @property
    def planned(self) -> float:
        """Mean MACs of a sample over the calibration data, at the present ranks."""
        return self.costs.planned

    @property
    def spent(self) -> float:
        return self.context.macs + self._samples * self.costs.fixed

    def set_budget(self, budget: float) -> None:
        """``budget``: percent of dense_macs, a mean over samples. Layers left dense take theirs; of the rest all others
        get the same mean rank, from r_min up to full."""
        costs = self.costs
        if not budget >= self.least_budget * (1 - 1e-12):
            least = f"{self.least_budget:.4g} %, the least"
            raise ValueError(f"budget = {budget:g} % is below {least}; raise it or lower r_min")
        costs.spend(costs.of_percent(budget))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        groups = group(self.scorer(x), self.scorer.edges)
        names = names_of(self.model, args) if args else ()  # to read a signature takes as long as a small product
        positional = over_samples(dict(zip(names, args, strict=True)), len(x), groups.sort, self.shared)
        options = over_samples(kwargs, len(x), groups.sort, self.shared)
        # Kept until the next forward: gradient checkpointing runs the layers again in the backward.
        self.context.groups, self.context.macs, self._samples = groups.sorted(), 0, len(x)
        return output_samples(self.model(groups.sort(x), *positional.values(), **options), len(x), groups.unsort)
