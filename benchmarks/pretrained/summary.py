"""From finished runs to losses: over learning rates, over ranks and alphas, over budgets."""

import dataclasses as dc
import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.campaign.store import Record
from benchmarks.convergence.curves import Curve, Steps, monotone, steps_to
from benchmarks.convergence.store import Store

from .arms import RATES
from .plan import ANCHOR, LOKR, OTHER, SMALL_ALPHA, Plan

REFERENCE = "torch-adamw"
USUAL = 10.0  # from the reference's best rate over this, people set theirs
Losses = dict[float, float | None]  # by learning rate, rising; None where it diverged


@dc.dataclass
class Sweep:
    """An arm over learning rates in one world.

    seeds      : seed -> loss at the best rate
    behind     : the largest loss above the reference's at one rate, from a tenth of the reference's best to its best
    best_widely: the factor of rates whose loss is at most the reference's best
    """

    losses: Losses
    training: Losses  # mean of the last quarter of the steps
    seeds: dict[int, float]
    seconds: float
    step_ms: float
    optimizer_ms: float
    complete: bool
    behind: float | None = None
    best_widely: float | None = None

    @property
    def best(self) -> tuple[float, float] | None:
        """(learning rate, loss)"""
        finite = {lr: loss for lr, loss in self.losses.items() if loss is not None}
        return min(finite.items(), key=lambda item: item[1]) if finite else None


def sweep(plan: Plan, store: Store, world: str, arm: str) -> Sweep | None:
    """None before its first run."""
    runs = plan.sweep(world, arm)
    records = [record for run in runs if (record := store.get(run)) is not None]
    if not records:
        return None
    losses = {record["lr"]: record["loss"] for record in records}
    made = Sweep(
        losses,
        {record["lr"]: training_loss(record) for record in records},
        {},
        *(statistics.median(r[key] for r in records) for key in ("seconds", "step_ms", "optimizer_ms")),
        complete=len(records) == len(runs),
    )
    if made.best is not None and made.complete:
        made.seeds = {
            seed: record["loss"]
            for seed in plan.mode.seeds
            if (record := store.get(plan.run(world, arm, made.best[0], plan.mode.steps, seed)))
            and record["loss"] is not None
        }
    return made


def training_loss(record: Record) -> float | None:
    losses = record["training_losses"]
    last = losses[-max(1, len(losses) // 4) :]
    return None if not last or None in last else statistics.fmean(last)


def compare(sweeps: Mapping[str, Sweep]) -> None:
    """Fills in what is read off against the reference."""
    reference = sweeps.get(REFERENCE)
    if reference is None or not reference.complete or reference.best is None:
        return
    best, target = reference.best
    usual = [lr for lr in reference.losses if best / USUAL * 0.999 <= lr <= best]
    for each in sweeps.values():
        if not each.complete:
            continue
        if all(lr in each.losses for lr in usual):
            each.behind = max(_above(each.losses[lr], reference.losses[lr]) for lr in usual)
        good = [lr for lr, loss in each.losses.items() if loss is not None and loss <= target]
        each.best_widely = max(good) / min(good) if good else 0.0


def _above(loss: float | None, other: float | None) -> float:
    if loss is None:
        return math.inf
    return -math.inf if other is None else loss - other


@dc.dataclass
class Cell:
    """An arm at one rank and alpha: losses at the first world's best rate as it is, by the rule, and the lowest."""

    rank: int
    alpha: float
    plain: float | None
    ruled: float | None
    lowest: float | None
    lowest_lr: float | None  # None where all diverged
    ruled_lr: float


def cells(plan: Plan, store: Store, arm: str) -> list[Cell]:
    """Those whose runs at one rate and by the rule are there."""
    rows: list[Cell] = []
    if (lr := plan.best(arm, store)) is None:
        return rows
    for rank, alpha in plan.places():
        plain, ruled, *others = plan.cell(arm, rank, alpha, lr)
        if plain.workload == ANCHOR:
            others = plan.sweep(ANCHOR, arm)
        records = [record for run in (plain, ruled, *others) if (record := store.get(run)) is not None]
        if not (store.get(plain) and store.get(ruled)):
            continue
        finite = [(record["loss"], record["lr"]) for record in records if record["loss"] is not None]
        lowest, at = min(finite) if finite else (None, None)
        rows.append(Cell(rank, alpha, records[0]["loss"], records[1]["loss"], lowest, at, ruled.lr))
    return rows


@dc.dataclass
class Budgets:
    """An arm at several budgets, each with its whole schedule, at the best of the rates tried with it.

    losses, lr: by steps; seeds: seed -> loss after the most steps, at the best rate of the usual budget
    """

    losses: dict[int, float]
    lr: dict[int, float]
    seeds: dict[int, float]
    to_reference: Steps | None = None  # steps over the reference's, to the loss that it has at the usual budget


def budgets(plan: Plan, store: Store) -> dict[str, Budgets]:
    found: dict[str, Budgets] = {}
    runs = plan.budgets(lambda name: plan.best(name, store))
    for arm in dict.fromkeys(run.optimizer for run in runs):
        rows: dict[int, list[tuple[float, float]]] = {}
        seeds: dict[int, float] = {}
        for run in [run for run in runs if run.optimizer == arm] + plan.sweep(ANCHOR, arm):
            record = store.get(run)
            if record is None or record["loss"] is None:
                continue
            if run.seed == plan.mode.seeds[0]:
                rows.setdefault(run.steps, []).append((record["loss"], run.lr))
            if run.steps == plan.mode.longer and run.lr == plan.best(arm, store):
                seeds[run.seed] = record["loss"]
        if rows:
            best = {steps: min(rows[steps]) for steps in sorted(rows)}
            losses, lr = ({n: each[i] for n, each in best.items()} for i in (0, 1))
            found[arm] = Budgets(losses, lr, dict(sorted(seeds.items())))
    reference, steps = found.get(REFERENCE), plan.mode.steps
    if reference is not None and steps in reference.losses:
        for each in found.values():
            if len(each.losses) > 1:
                reached = steps_to(_curve(each), reference.losses[steps])
                each.to_reference = Steps(reached.steps / steps, reached.bound)
    return found


def _curve(of: Budgets) -> Curve:
    return monotone([(float(steps), loss) for steps, loss in of.losses.items()])


def summarise(plan: Plan, store: Store) -> dict[str, Any]:
    """Everything the report shows; `summary.plain` of the convergence benchmark makes JSON of it for `restored`."""
    worlds = (ANCHOR, SMALL_ALPHA, LOKR, OTHER) if plan.finalists else (ANCHOR,)
    sweeps: dict[str, dict[str, Sweep]] = {}
    for world in worlds:
        arms = plan.arms if world == ANCHOR else plan.finalists
        sweeps[world] = {arm: each for arm in arms if (each := sweep(plan, store, world, arm)) is not None}
        compare(sweeps[world])
    return {
        "mode": dc.asdict(plan.mode),
        "rates": list(RATES),
        "skipped": plan.skipped,
        "missing": sum(store.get(run) is None for run in plan.known(store)),
        "stale": len(plan.stale(store)),
        "base": {world: record["loss"] for world in worlds if (record := store.get(plan.base(world)))},
        "sweeps": sweeps,
        "cells": {arm: rows for arm in plan.finalists if (rows := cells(plan, store, arm))},
        "budgets": budgets(plan, store),
    }


def restored(content: dict[str, Any]) -> dict[str, Any]:
    """The summary of a file that it was written to."""

    def by(kind: Callable[[str], Any], values: dict[str, Any]) -> dict[Any, Any]:
        return {kind(key): value for key, value in values.items()}

    def sweep_of(each: dict[str, Any]) -> Sweep:
        fields: dict[str, Any] = each | {key: by(float, each[key]) for key in ("losses", "training")}
        return Sweep(**fields | {"seeds": by(int, each["seeds"])})

    def budgets_of(each: dict[str, Any]) -> Budgets:
        reached = each["to_reference"] and Steps(**each["to_reference"])
        return Budgets(*(by(int, each[key]) for key in ("losses", "lr", "seeds")), reached)

    sweeps = {world: {arm: sweep_of(each) for arm, each in row.items()} for world, row in content["sweeps"].items()}
    for row in sweeps.values():
        compare(row)
    return content | {
        "sweeps": sweeps,
        "cells": {arm: [Cell(**each) for each in rows] for arm, rows in content["cells"].items()},
        "budgets": {arm: budgets_of(each) for arm, each in content["budgets"].items()},
    }
