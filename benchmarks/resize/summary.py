"""From finished runs to what each file adds to the held-out loss of the LoRA that it was made of."""

import statistics
from typing import Any

from .plan import Plan, resized
from .rivals import SD_SCRIPTS
from .runs import ABLATIONS, OURS, OURS_TRAINING, PARTS, Store

TRAINED = "a LoRA trained at that size"
ARMS = (OURS, OURS_TRAINING, *ABLATIONS, *SD_SCRIPTS, "threshold", TRAINED)


def summarise(plan: Plan, store: Store) -> dict[str, Any]:
    """worlds: parent's rank -> numbers; rows: arm, part of the size, mean bytes, added loss of each seed."""
    worlds = {}
    for parent in plan.mode.parents:
        lr = plan.rate(parent, store)
        finals = plan.finals(parent, lr) if lr is not None else []
        records = [record for run in finals if (record := store.get(resized(run)))]
        if records and lr is not None:
            worlds[str(parent)] = _world(plan, store, parent, lr, records)
    return {
        "mode": plan.mode.name, "steps": plan.mode.steps, "seeds": plan.mode.seeds, "worlds": worlds,
        "missing": sum(store.get(run) is None for run in plan.known(store)), "stale": len(plan.stale(store)),
        "real": all(record["real"] for record in store.records.values() if record["kind"] == "resize"),
    }  # fmt: skip


def _world(plan: Plan, store: Store, parent: int, lr: float, records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for part in PARTS:
        for arm in ARMS:
            found = _trained(plan, store, parent // part, lr, records) if arm == TRAINED else [
                {**each, "added": each["loss"] - record["loss"]} for record in records for each in record["results"]
                if (each["arm"], each["part"]) == (arm, part)]  # fmt: skip
            if found:
                size = statistics.fmean(each["bytes"] for each in found)
                rows.append(
                    {"arm": arm, "part": part, "bytes": round(size), "added": [each["added"] for each in found]}
                )
    theirs = [row for row in rows if row["arm"] in SD_SCRIPTS]
    one_rank = {row["part"]: row["bytes"] for row in theirs if row["arm"] == SD_SCRIPTS[0]}
    return {
        "excess": max(row["bytes"] / one_rank[row["part"]] for row in theirs) - 1,
        "lr": lr, "rows": rows, "none": records[0]["none"], "bytes": records[0]["bytes"],
        "loss": [record["loss"] for record in records],
        "calibration_seconds": statistics.fmean(record["calibration_seconds"] for record in records),
    }  # fmt: skip


def _trained(plan: Plan, store: Store, rank: int, lr: float, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each less the large one of its own seed."""
    found = []
    for parent in records:
        record = store.get(plan.train(rank, lr, parent["seed"]))
        if record is not None and record["loss"] is not None:
            found.append({"added": record["loss"] - parent["loss"], "bytes": record["bytes"]})
    return found


def mean(row: dict[str, Any]) -> float:
    return statistics.fmean(row["added"])


def best_of_sd_scripts(rows: list[dict[str, Any]], part: int) -> dict[str, Any]:
    """By the mean over seeds."""
    return min((row for row in rows if row["part"] == part and row["arm"] in SD_SCRIPTS), key=mean)


def row_of(rows: list[dict[str, Any]], arm: str, part: int) -> dict[str, Any] | None:
    return next((row for row in rows if (row["arm"], row["part"]) == (arm, part)), None)
