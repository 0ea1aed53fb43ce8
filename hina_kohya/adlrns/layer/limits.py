"""Hold a model at `scheduler.budget`, and at an energy where the configuration has one."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hina_kohya.adlrns.settings import Settings

from .budget import BudgetManager
from .compressed import CompressedModel
from .perf import Counter, energy_counter
from .sharing import Costs, costs


class Limits:
    """``count(x)``, then ``replan()`` sets the ranks; ``begin()`` before a batch and ``end(x)`` after it measure its
    energy, where that is what limits.

    remark  : what is not as the configuration says, "" if there is nothing
    manager : of measured energy; None before the first `replan`, and where nothing is measured

    Raises ValueError for an energy budget where there is neither a counter nor `hardware.energy_per_flop`.
    """

    def __init__(self, model: nn.Module, config: Settings, device: torch.device):
        self.model, self.config = model, config
        self.budget, self.energy = config.scheduler.budget, config.scheduler.energy_budget_mJ_per_sample
        self.costs: Costs | None = model.costs if isinstance(model, CompressedModel) else None
        self.manager: BudgetManager | None = None
        self.remark, self._before = "", 0.0
        self._counter: Counter | None = None
        self._ceiling = math.inf  # multiply-adds of a sample
        if self.energy is not None:
            self._counter, reason = energy_counter(device)
            if self._counter is None:
                self._by_operations(self.energy, reason)
        # Without a budget in percent, measured energy lowers what the model has.
        self._full = self.costs.planned if self.costs else 0.0

    def _by_operations(self, energy: float, reason: str) -> None:
        factor = self.config.hardware.energy_per_flop
        if factor is None:
            raise ValueError(
                f"energy_budget_mJ_per_sample = {energy} cannot be measured here ({reason}); use scheduler.budget, or "
                "give hardware.energy_per_flop, mJ of an operation, to hold it by counted operations"
            )
        self._ceiling = energy / (factor * self.config.hardware.flops_per_mac)
        self.remark = (
            f"scheduler.energy_budget_mJ_per_sample = {energy:g} is not measured ({reason}); it is held as "
            f"{self._ceiling:.4g} multiply-adds of a sample, by hardware.energy_per_flop = {factor:g} mJ"
        )

    @property
    def counts(self) -> bool:
        """Whether `count` has something to do."""
        return self.costs is None and not (self.budget is None and self.energy is None)

    def count(self, x: Tensor, **side: Any) -> None:
        """What each layer costs, in a forward of a batch x; nothing if that is known or limits nothing."""
        if self.counts:
            self.costs = costs(self.model, x, **side)
            self._full = self.costs.most

    def replan(self) -> None:
        """Raises ValueError for a budget below the cost of r_min. Measured energy lowers the budget no further."""
        if self.budget is None and self.energy is None:
            return
        assert self.costs is not None, "count first"
        least = self.costs.least
        base = self._full if self.budget is None else self.costs.of_percent(self.budget)
        if base < least * (1 - 1e-12):
            raise ValueError(
                f"budget = {self.costs.percent(base):g} % is below {self.costs.percent(least):.4g} %, the least; "
                "raise it or lower r_min"
            )
        if self._counter is not None and self.energy is not None:
            if self.manager is None:
                self.manager = BudgetManager(self.energy, "mJ", least=min(1.0, least / base))
            base *= self.manager.factor
        elif self.energy is not None and self._ceiling < least * (1 - 1e-12):
            raise ValueError(
                f"energy_budget_mJ_per_sample = {self.energy:g} is {self._ceiling:.4g} multiply-adds of a sample and "
                f"below {least:.4g}, the least; raise it to {self.energy * least / self._ceiling:.4g}, or lower r_min"
            )
        self.costs.spend(max(min(base, self._ceiling), least))

    def begin(self) -> None:
        if self._counter is not None:
            self._before = self._counter.mJ()

    def end(self, x: Tensor, **side: Any) -> None:
        """After a forward of the batch x."""
        if self._counter is not None:
            spent = self._counter.mJ() - self._before
            self.count(x, **side)
            if self.manager is None:
                self.replan()
            assert self.manager is not None
            self.manager.observe(spent, len(x))
            self.replan()
