"""Keep the mean cost of a stream at a budget, whatever comes."""

import math

UNITS = ("macs", "ms", "mJ")
MODES = ("cap", "spend")


class BudgetManager:
    """An integral controller on the log of the budget that the planner is given.

    budget  : mean cost of a sample over the stream
    unit    : what is observed: multiply-adds, milliseconds or millijoules; one unit throughout, none is converted
    mode    : cap: spend less where samples are simple, never plan for more than the calibrated budget; spend: also
              plan for more, up to ``most`` times, where samples are simple
    horizon : samples within which an overspending is to be paid back; also the warm-up before the mean holds
    least   : the smallest factor, above 0, so that no sample starves: give the planner's least budget / its budget

    ``planner.set_budget(base * manager.factor)`` before a batch, ``manager.observe(cost, samples)`` after it.
    """

    def __init__(
        self,
        budget: float,
        unit: str = "macs",
        mode: str = "cap",
        horizon: int = 1024,
        least: float = 0.05,
        most: float = 4.0,
    ):
        if not 0 < budget < math.inf:
            raise ValueError(f"budget = {budget} must be above 0 and finite")
        if unit not in UNITS or mode not in MODES:
            raise ValueError(
                f"unit = {unit!r}, mode = {mode!r}: units are {', '.join(UNITS)}, modes {', '.join(MODES)}"
            )
        if horizon < 1 or not 0 < least <= 1 <= most < math.inf:
            raise ValueError(f"horizon = {horizon}, least = {least}, most = {most}: >= 1, in (0, 1], >= 1 must hold")
        self.budget, self.unit, self.mode, self.horizon = float(budget), unit, mode, horizon
        self.least, self.most = least, most if mode == "spend" else 1.0
        self.reset()

    def reset(self) -> None:
        self.spent, self.samples, self._log = 0.0, 0, 0.0

    @property
    def factor(self) -> float:
        """What to multiply the calibrated budget with for the next batch, from ``least`` to 1 (cap) or ``most``."""
        return math.exp(self._log)

    @property
    def mean(self) -> float:
        """Mean cost of a sample so far; nan before the first."""
        return self.spent / self.samples if self.samples else math.nan

    def observe(self, cost: float | None, samples: int) -> None:
        """``cost``: of all ``samples`` together, in ``unit``. Raises ValueError for a cost that was not measured."""
        if cost is None or not 0 <= cost < math.inf or samples < 0:
            raise ValueError(
                f"cost = {cost} {self.unit} of {samples} samples is no measurement; use a unit that can be measured "
                "here (macs always can)"
            )
        if not samples:
            return
        self.spent += cost
        self.samples += samples
        debt = (self.spent / self.budget - self.samples) / self.horizon
        wanted = min(max(1 - debt, 0.25), 4.0)
        rate = max(cost / samples / self.budget, 1e-3)
        weight = 1 - math.exp(-4 * samples / self.horizon)
        change = weight * (math.log(wanted) - math.log(rate))
        self._log = min(max(self._log + change, math.log(self.least)), math.log(self.most))
