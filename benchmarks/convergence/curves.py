"""Reading the saving off loss-versus-budget curves at equal loss."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

Curve = list[tuple[float, float]]  # (steps, loss), steps rising


class Steps(NamedTuple):
    """Steps to a loss. ``bound``: "" exact; "<=" reached before the smallest budget; ">" not reached at the largest."""

    steps: float
    bound: str = ""

    def __str__(self) -> str:
        return f"{self.bound}{self.steps:.0f}"


def monotone(curve: Curve) -> Curve:
    """The nearest curve that never rises (pool adjacent violators): noise must not make more steps look worse."""
    blocks: list[list[float]] = []  # mean, count
    for _, loss in curve:
        blocks.append([loss, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    losses = [mean for mean, count in blocks for _ in range(int(count))]
    return [(steps, loss) for (steps, _), loss in zip(curve, losses, strict=True)]


def loss_at(curve: Curve, steps: float) -> float:
    """Of a monotone curve, linear in log steps between its points."""
    for (s0, l0), (s1, l1) in pairwise(curve):
        if s0 <= steps <= s1:
            return l0 + (l1 - l0) * math.log(steps / s0) / math.log(s1 / s0)
    raise ValueError(f"{steps} steps are outside of {curve[0][0]} to {curve[-1][0]}")


def steps_to(curve: Curve, loss: float) -> Steps:
    """The fewest steps at which a monotone curve is down to ``loss``."""
    if not curve or curve[-1][1] > loss:
        return Steps(curve[-1][0] if curve else math.inf, ">")
    if curve[0][1] <= loss:
        return Steps(curve[0][0], "" if curve[0][1] == loss else "<=")
    for (s0, l0), (s1, l1) in pairwise(curve):
        if l1 <= loss:
            return Steps(s0 * (s1 / s0) ** ((l0 - loss) / (l0 - l1)))
    raise AssertionError("unreachable: the last point is low enough")


def overlap_ratio(curve: Curve, reference: Curve, levels: int = 16) -> float | None:
    """Steps over the reference's steps at equal loss, geometric mean over the losses that both curves pass."""
    high = min(curve[0][1], reference[0][1])
    low = max(curve[-1][1], reference[-1][1])
    if not low < high:
        return None
    wanted = [low + (high - low) * (i + 0.5) / levels for i in range(levels)]
    logs = [math.log(steps_to(curve, at).steps / steps_to(reference, at).steps) for at in wanted]
    return math.exp(sum(logs) / levels)


def at_equal_rates(
    trials: Mapping[float, float | None], base: Mapping[float, float | None], curve: Curve, budget: float
) -> float | None:
    """Steps over the base's, as far as trials at the same learning rates tell; None without such trials.

    trials, base: learning rate -> loss at ``budget``; curve: the base's, whose slope turns a loss into steps. Counts
    the base's best rate and its neighbours: what depends on which rate happened to win falls out.
    """
    finite = {lr: loss for lr, loss in base.items() if loss is not None}
    if not finite:
        return None
    rates = sorted(finite)
    best = rates.index(min(finite, key=finite.__getitem__))
    near = rates[max(0, best - 1) : best + 2]
    pairs = [(loss, finite[lr]) for lr in near if (loss := trials.get(lr)) is not None]
    before = [point for point in curve if point[0] < budget]
    after = [point for point in curve if point[0] > budget]
    if len(pairs) < len(near) or not before or not after or not before[-1][1] > after[0][1]:
        return None
    slope = (before[-1][1] - after[0][1]) / math.log(after[0][0] / before[-1][0])
    return math.exp(sum(loss - other for loss, other in pairs) / len(pairs) / slope)


def geometric_mean(ratios: Sequence[Steps]) -> Steps:
    """Of ratios with bounds: the result says what is known about it."""
    if not ratios:
        return Steps(math.nan)
    value = math.exp(sum(math.log(ratio.steps) for ratio in ratios) / len(ratios))
    bounds = {ratio.bound for ratio in ratios} - {""}
    return Steps(value, bounds.pop() if len(bounds) == 1 else "~" if bounds else "")


def profile(costs: Mapping[str, Mapping[str, float]], at: Sequence[float]) -> dict[str, list[float]]:
    """Dolan and More: for each optimizer, the share of workloads where it costs at most ``at`` times the least cost.

    costs: workload -> optimizer -> cost, infinite where the target was not reached.
    """
    names = sorted({name for row in costs.values() for name in row})
    least = {workload: min(row.values()) for workload, row in costs.items()}
    return {
        name: [
            sum(
                math.isfinite(cost) and cost <= tau * least[workload]
                for workload, row in costs.items()
                if (cost := row.get(name, math.inf)) is not None
            )
            / max(1, len(costs))
            for tau in at
        ]
        for name in names
    }
