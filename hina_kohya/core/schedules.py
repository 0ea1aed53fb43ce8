"""A new learning rate on resume: what the checkpoint had, what this run asks for, and a scheduler that follows.

A scheduler saves the rates that it starts from (``base_lrs``) and where it is. Restored, it gives the old rates again
from its next step on, whatever the optimizer holds. `hold_rates` sets it on the new ones, at the same place.
"""

import dataclasses as dc
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hina_kohya.core.groups import number_of

if TYPE_CHECKING:
    from hina_kohya.core.optimizer import HinaOptimizer

logger = logging.getLogger("hina_kohya")


@dc.dataclass(frozen=True)
class NewRate:
    """Of one param group: the rates that schedules start from, and what the checkpoint's schedule was at."""

    asked: float
    saved: float
    saved_now: float

    @property
    def factor(self) -> float:
        return self.asked / self.saved if self.saved else 1.0


def base_rate(group: Any) -> float:
    return float(number_of(group.get("initial_lr", group["lr"])))


def hold_rates(optimizer: "HinaOptimizer", scheduler: Any) -> None:
    """After a checkpoint was loaded into both: the learning rates that this run was started with hold from now on.

    Acts once after a checkpoint was loaded, and only where ``override_hyperparameters`` is on, a rate is another one
    than the checkpoint's, and the scheduler was restored. A wrapped scheduler (accelerate's) is found by its attribute
    ``scheduler``.
    """
    rates, optimizer.new_rates = optimizer.new_rates, ()
    lrs = [rate.asked for rate in rates]
    if lrs == [rate.saved for rate in rates] or _starts_from(scheduler, lrs):
        return
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        _set(group, "lr", rate.saved_now * rate.factor if rate.saved else rate.asked)
        if "initial_lr" in group:
            _set(group, "initial_lr", rate.asked)
    for each in _inner(scheduler):
        if hasattr(each, "base_lrs"):
            each.base_lrs = _changed(each.base_lrs, lrs)
        if getattr(each, "_last_lr", None):
            each._last_lr = [last * rate.factor for last, rate in zip(each._last_lr, rates, strict=True)]
        if hasattr(each, "max_lrs"):  # the other end of CyclicLR's range
            each.max_lrs = [lr * rate.factor for lr, rate in zip(each.max_lrs, rates, strict=True)]
    outer = next(_inner(scheduler))
    if hasattr(outer, "_get_closed_form_lr"):  # a floor that is no multiple of the rate
        for group, lr in zip(optimizer.param_groups, outer._get_closed_form_lr(), strict=True):
            _set(group, "lr", float(lr))
        outer._last_lr = [group["lr"] for group in optimizer.param_groups]
    logger.info("resume: the schedule goes on from a learning rate of %s", listed(lrs))


def _starts_from(scheduler: Any, rates: Sequence[float]) -> bool:
    """Whether it was made for these rates, and not restored to others."""
    bases = [each.base_lrs for each in _inner(scheduler) if hasattr(each, "base_lrs")]
    return bool(bases) and all([float(number_of(lr)) for lr in base] == list(rates) for base in bases)


def _inner(scheduler: Any) -> Iterator[Any]:
    """The scheduler itself and those that it is made of."""
    while hasattr(scheduler, "scheduler"):
        scheduler = scheduler.scheduler
    yield scheduler
    for each in getattr(scheduler, "_schedulers", ()):
        yield from _inner(each)


def _changed(base: Sequence[Any], asked: Sequence[float]) -> list[Any]:
    return [each.fill_(rate) if isinstance(each, Tensor) else rate for each, rate in zip(base, asked, strict=True)]


def _set(group: dict[str, Any], key: str, value: float) -> None:
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def listed(rates: Sequence[float]) -> str:
    return " / ".join(f"{rate:g}" for rate in dict.fromkeys(rates))
