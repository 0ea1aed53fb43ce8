"""From gains and a budget to a rank for each cell."""

import torch
from torch import Tensor

from hina_kohya.adlrns.water_level import prefixes

KINDS = ("energy_aware", "linear", "adaptive")


class RankScheduler:
    """Ranks of the cells of one layer.

    energy_aware : one water level on the gains, the most gain the budget buys, and what is left over spent
    linear       : from r_min at the simplest cell in equal steps up to r_max, or to what the budget allows; no gains
    adaptive     : energy_aware on gains that follow the training, see `blend`
    momentum     : of `blend`, what is kept of the old gains
    """

    def __init__(self, kind: str = "energy_aware", r_min: int = 4, r_max: int = 64, momentum: float = 0.9):
        if kind not in KINDS:
            raise ValueError(f"scheduler = {kind!r} is unknown; use one of {', '.join(KINDS)}")
        if not 0 <= r_min <= r_max or r_max < 1:
            raise ValueError(f"r_min = {r_min}, r_max = {r_max}: 0 <= r_min <= r_max and r_max >= 1 must hold")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum = {momentum} must be in [0, 1)")
        self.kind, self.r_min, self.r_max, self.momentum = kind, r_min, r_max, momentum

    def __call__(self, gain: Tensor, cost: float, share: Tensor, budget: float) -> Tensor:
        """Ranks [K], with ``sum(share * ranks) * cost <= budget``.

        gain   : [K, r_max], of direction r in cell k, see `compression`
        cost   : of one direction for one sample, in the budget's unit
        share  : [K], how often each cell occurs; any positive scale
        budget : mean cost of a sample

        Raises ValueError for a budget below that of r_min, naming it.
        """
        if not budget > 0:
            raise ValueError(f"budget = {budget} must be above 0")
        gain = gain[:, : self.r_max]
        if self.kind == "linear":
            return self._linear(cost, share.double(), budget)
        return prefixes(gain.cpu(), cost, share.cpu(), budget, self.r_min)

    def _linear(self, cost: float, share: Tensor, budget: float) -> Tensor:
        share = (share / share.sum()).cpu()
        least = self.r_min * cost
        if least > budget:
            raise ValueError(f"budget = {budget:g} is below {least:g}, the cost of r_min = {self.r_min}; raise it")
        place = torch.linspace(0, 1, len(share), dtype=torch.float64) if len(share) > 1 else torch.ones(1).double()

        def ranks(slope: float) -> Tensor:
            return (self.r_min + slope * place).floor().long().clamp(max=self.r_max)

        low, high = 0.0, float(self.r_max - self.r_min)
        if float((ranks(high) * share).sum()) * cost <= budget:
            return ranks(high)
        while high - low > 1e-6:
            middle = (low + high) / 2
            low, high = (middle, high) if float((ranks(middle) * share).sum()) * cost <= budget else (low, middle)
        return ranks(low)

    def blend(self, old: Tensor, new: Tensor) -> Tensor:
        """The gains after a training step; ``new`` is NaN where the step saw nothing."""
        return torch.where(new.isnan(), old, self.momentum * old + (1 - self.momentum) * new)
