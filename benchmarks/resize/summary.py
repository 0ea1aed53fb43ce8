"""From finished runs to what each file adds to the held-out loss of the LoRA that it was made of."""

import statistics
from typing import Any

from .plan import Plan, calibrated, resized
from .rivals import SD_SCRIPTS
from .runs import ABLATIONS, OURS, OURS_TRAINING, PARTS, Run, Store

TRAINED = "a LoRA trained at that size"
ARMS = (OURS, OURS_TRAINING, *ABLATIONS, *SD_SCRIPTS, "threshold", TRAINED)


def summarise(plan: Plan, store: Store) -> dict[str, Any]:
    """worlds: world -> parent's rank -> numbers; rows: arm, part of the size, mean bytes, added loss of each seed."""
    worlds: dict[str, dict[str, Any]] = {}
    for world, parent in plan.places:
        lr = plan.rate(world, parent, store)
        finals = [run for run in (plan.finals(world, parent, lr) if lr is not None else []) if store.get(run)]
        none = store.get(plan.none(world))
        if none is not None and (numbers := _numbers(plan, store, finals)) is not None:
            worlds.setdefault(world, {})[str(parent)] = {"lr": lr, "none": none["loss"], **numbers}
    return {
        "mode": plan.mode.name, "steps": {world: plan.steps(world) for world in worlds}, "seeds": plan.mode.seeds,
        "worlds": worlds, "skipped": plan.skipped,
        "missing": sum(store.get(run) is None for run in plan.known(store)), "stale": len(plan.stale(store)),
        "real": all(record["real"] for record in store.records.values() if record["kind"] == "resize"),
    }  # fmt: skip


def _numbers(plan: Plan, store: Store, finals: list[Run]) -> dict[str, Any] | None:
    """Of the large LoRAs of a rank; None before a file was made of one."""
    rows = []
    for part in PARTS:
        for arm in ARMS:
            each = _trained(plan, store, part, finals) if arm == TRAINED else _made(store, arm, part, finals)
            if each:
                size = statistics.fmean(record["bytes"] for record in each)
                rows.append(
                    {"arm": arm, "part": part, "bytes": round(size), "added": [record["added"] for record in each]}
                )
    theirs = [row for row in rows if row["arm"] in SD_SCRIPTS]
    if not theirs:
        return None
    one_rank = {row["part"]: row["bytes"] for row in theirs if row["arm"] == SD_SCRIPTS[0]}
    parents = [record for run in finals if (record := store.get(run))]
    calibrations = [record for run in finals if (record := store.get(calibrated(run)))]
    return {
        "excess": max(row["bytes"] / one_rank[row["part"]] for row in theirs) - 1,
        "rows": rows, "bytes": parents[0]["bytes"], "loss": [record["loss"] for record in parents],
        "calibration_seconds": statistics.fmean(record["calibration_seconds"] for record in calibrations),
    }  # fmt: skip


def _made(store: Store, arm: str, part: int, finals: list[Run]) -> list[dict[str, Any]]:
    """Each less the large one that it was made of."""
    return [
        {"added": each["loss"] - parent["loss"], "bytes": each["bytes"]}
        for run in finals if (record := store.get(resized(run, part))) and (parent := store.get(run))
        for each in record["results"] if each["arm"] == arm
    ]  # fmt: skip


def _trained(plan: Plan, store: Store, part: int, finals: list[Run]) -> list[dict[str, Any]]:
    """Each less the large one of its own seed."""
    large = {run.seed: record for run in finals if (record := store.get(run))}
    if part not in plan.mode.trained or not finals:
        return []
    small = plan.small(finals[0].world, finals[0].rank, part, lambda world, rank: plan.rate(world, rank, store))
    return [
        {"added": record["loss"] - large[run.seed]["loss"], "bytes": record["bytes"]}
        for run in small
        if run.seed in large and (record := store.get(run)) and record["loss"] is not None
    ]


def mean(row: dict[str, Any]) -> float:
    return statistics.fmean(row["added"])


def best_of_sd_scripts(rows: list[dict[str, Any]], part: int) -> dict[str, Any]:
    """By the mean over seeds."""
    return min((row for row in rows if row["part"] == part and row["arm"] in SD_SCRIPTS), key=mean)


def row_of(rows: list[dict[str, Any]], arm: str, part: int) -> dict[str, Any] | None:
    return next((row for row in rows if (row["arm"], row["part"]) == (arm, part)), None)
