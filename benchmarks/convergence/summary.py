"""From finished runs to scores: steps to a loss, savings at equal loss, spread over seeds, performance profiles."""

import dataclasses as dc
import math
import statistics
from typing import Any

from .curves import (
    Curve,
    Steps,
    at_equal_rates,
    geometric_mean,
    loss_at,
    monotone,
    overlap_ratio,
    profile,
    steps_to,
)
from .optimizers import BASELINES, OPTIMIZERS, REFERENCES
from .plan import Mode, Plan
from .store import Store
from .workloads import WORKLOADS

UNKNOWN = Steps(math.nan)
BASE = "hina-default"  # what the other variants of ours change
TAUS = [1 + 0.02 * i for i in range(76)]  # 1 to 2.5


@dc.dataclass
class Result:
    """One optimizer on one workload: what was measured, and by `score` what it says against others."""

    lr: float
    trials: dict[float, float | None]
    losses: dict[int, list[float]]  # steps -> by seed; infinite where a run diverged
    step_ms: float
    optimizer_ms: float
    against: dict[str, Steps] = dc.field(default_factory=dict)
    seeds_against: dict[str, list[Steps]] = dc.field(default_factory=dict)
    overlap: dict[str, float | None] = dc.field(default_factory=dict)
    target: Steps = UNKNOWN
    equal_rates: float | None = None  # against `BASE`

    @property
    def edge(self) -> bool:
        """The best trial is the lowest or the highest: better ones may lie outside."""
        return self.lr in (min(self.trials), max(self.trials))

    @property
    def finite(self) -> bool:
        return all(math.isfinite(loss) for row in self.losses.values() for loss in row)

    @property
    def curves(self) -> list[Curve]:
        """By seed; none if a run diverged."""
        if not self.finite:
            return []
        by_seed = zip(*self.losses.values(), strict=True)
        return [monotone(list(zip(self.losses, losses, strict=True))) for losses in by_seed]

    @property
    def mean(self) -> Curve:
        """Over seeds; empty if a run diverged."""
        if not self.finite:
            return []
        return monotone([(steps, statistics.fmean(row)) for steps, row in self.losses.items()])

    @property
    def seconds_to_target(self) -> float:
        return math.inf if self.target.bound == ">" else self.target.steps * self.optimizer_ms / 1e3


def result(plan: Plan, store: Store, workload: str, optimizer: str) -> Result | None:
    """None while a run of it is missing."""
    trials = [store.get(run) for run in plan.trials(workload, optimizer)]
    by_seed = plan.curve(workload, optimizer, plan.chosen(workload, optimizer, store))
    records = {seed: [store.get(run) for run in runs] for seed, runs in by_seed.items()}
    done = [r for row in records.values() for r in row if r is not None]
    if not by_seed or len(done) < sum(map(len, by_seed.values())):
        return None
    tried = {r["lr"]: r["loss"] for r in trials if r is not None}
    lr = done[0]["lr"]
    losses: dict[int, list[float]] = {}
    for record in done:
        losses.setdefault(record["steps"], []).append(math.inf if record["loss"] is None else record["loss"])
    step_ms, optimizer_ms = (statistics.median(r[key] for r in done) for key in ("step_ms", "optimizer_ms"))
    return Result(lr, tried, losses, step_ms, optimizer_ms)


def relate(results: dict[str, Result], budget: int, base_name: str = BASE) -> float | None:
    """Fills in, for one workload, what is read off against others; returns the target, the best baseline's loss."""
    longest = max((max(r.losses) for r in results.values()), default=budget)
    for name, each in results.items():
        for reference in REFERENCES:
            other = results.get(reference)
            if other is None or not other.mean:
                continue
            if name == reference:
                each.against[reference], each.overlap[reference] = Steps(1.0), 1.0
                each.seeds_against[reference] = [Steps(1.0)] * len(other.curves)
                continue
            each.against[reference] = _ratio(each.mean, other.mean, budget, longest)
            own = each.curves or [[]] * len(other.curves)
            each.seeds_against[reference] = [
                _ratio(curve, reference, budget, longest) for curve, reference in zip(own, other.curves, strict=True)
            ]
            each.overlap[reference] = overlap_ratio(each.mean, other.mean) if each.mean else None
    base = results.get(base_name)
    for each in results.values():
        if base is not None and base.mean:
            each.equal_rates = at_equal_rates(each.trials, base.trials, base.mean, budget)
    reached = [loss_at(each.mean, budget) for name, each in results.items() if name in BASELINES and each.mean]
    if not reached:
        return None
    for each in results.values():
        each.target = steps_to(each.mean, min(reached)) if each.mean else Steps(longest, ">")
    return min(reached)


def _ratio(curve: Curve, reference: Curve, budget: int, longest: int) -> Steps:
    """Steps to the loss that the reference has at ``budget``, over the reference's own steps to it."""
    loss = loss_at(reference, budget)
    own = steps_to(reference, loss).steps  # less than budget on a flat stretch
    reached = steps_to(curve, loss) if curve else Steps(longest, ">")
    return Steps(reached.steps / own, reached.bound)


def summarise(plan: Plan, store: Store) -> dict[str, Any]:
    """What was measured, and everything the report shows; `kept` makes JSON of it."""
    workloads: dict[str, dict[str, Result]] = {}
    unfinished: list[str] = []
    for workload, optimizer in plan.pairs:
        if (each := result(plan, store, workload, optimizer)) is None:
            unfinished.append(f"{workload} {optimizer}")
        else:
            workloads.setdefault(workload, {})[optimizer] = each
    return score(
        {
            "mode": plan.mode,
            "base": BASE,
            "variants": [name for name in plan.mode.optimizers if name != BASE and OPTIMIZERS[name].steps_as_default],
            "skipped": plan.skipped,
            "unfinished": unfinished,
            "stale": len(plan.stale(store)),
            "workloads": workloads,
        }
    )


def score(measured: dict[str, Any]) -> dict[str, Any]:
    """With targets, ratios, means over workloads and profiles."""
    workloads, mode = measured["workloads"], measured["mode"]
    return measured | {
        "targets": {name: relate(row, mode.steps(name), measured["base"]) for name, row in workloads.items()},
        "aggregate": {name: {half: _aggregate(workloads, name, half) for half in (1, 2)} for name in mode.optimizers},
        "profiles": {half: _profiles(workloads, half) for half in (1, 2)},
    }


MEASURED = ("lr", "trials", "losses", "step_ms", "optimizer_ms")


def kept(summary: dict[str, Any]) -> dict[str, Any]:
    """What `restored` needs to make the summary again, as JSON."""
    rows = {
        workload: {name: {key: getattr(each, key) for key in MEASURED} for name, each in row.items()}
        for workload, row in summary["workloads"].items()
    }
    derived = ("targets", "aggregate", "profiles")
    return plain({key: value for key, value in summary.items() if key not in derived} | {"workloads": rows})


def restored(content: dict[str, Any]) -> dict[str, Any]:
    """The summary of a file that `kept` is written to."""
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content["mode"].items()}
    workloads = {
        workload: {name: _result(**each) for name, each in row.items()}
        for workload, row in content["workloads"].items()
    }
    return score(content | {"mode": Mode(**fields), "workloads": workloads})


def _result(lr: float, trials: dict[str, Any], losses: dict[str, Any], step_ms: float, optimizer_ms: float) -> Result:
    by_steps = {int(n): [math.inf if loss is None else loss for loss in row] for n, row in losses.items()}
    return Result(lr, {float(rate): loss for rate, loss in trials.items()}, by_steps, step_ms, optimizer_ms)


def _of_half(by_workload: dict[str, dict[str, Result]], half: int) -> dict[str, dict[str, Result]]:
    return {name: row for name, row in by_workload.items() if WORKLOADS[name].half == half}


def _aggregate(by_workload: dict[str, dict[str, Result]], optimizer: str, half: int) -> dict[str, Any]:
    """Geometric means over the workloads of a half on which the optimizer is finished, and the worst of them."""
    rows = [row[optimizer] for row in _of_half(by_workload, half).values() if optimizer in row]
    found: dict[str, Any] = {"workloads": len(rows)}
    for reference in REFERENCES:
        ratios = [row.against[reference] for row in rows if reference in row.against]
        overlaps = [ratio for row in rows if (ratio := row.overlap.get(reference)) is not None]
        found[reference] = {
            "ratio": geometric_mean(ratios) if ratios else None,
            "worst": max(ratios, default=None),
            "overlap": math.exp(statistics.fmean(map(math.log, overlaps))) if overlaps else None,
        }
    return found


def _profiles(by_workload: dict[str, dict[str, Result]], half: int) -> dict[str, dict[str, list[float]]]:
    """By steps and by optimizer time, over the workloads of a half that have a target."""
    rows = _of_half(by_workload, half)
    steps, seconds = {}, {}
    for workload, row in rows.items():
        reached = {name: each for name, each in row.items() if math.isfinite(each.target.steps)}
        if any(each.target.bound != ">" for each in reached.values()):
            steps[workload] = {n: math.inf if e.target.bound == ">" else e.target.steps for n, e in reached.items()}
            seconds[workload] = {name: each.seconds_to_target for name, each in reached.items()}
    return {"steps": profile(steps, TAUS), "optimizer time": profile(seconds, TAUS)}


def plain(value: Any) -> Any:
    """What JSON can say; infinite and undefined numbers become null."""
    if isinstance(value, Steps):
        return {"steps": plain(value.steps), "bound": value.bound}
    if dc.is_dataclass(value):
        return plain({field.name: getattr(value, field.name) for field in dc.fields(value)})
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
