"""From finished runs to rows: means over seeds, and what the project has promised."""

import math
import statistics
from collections import defaultdict
from operator import itemgetter
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.campaign.store import Record
from benchmarks.convergence.plan import TRIAL_SEED

from .plan import RATES, Cell, Plan
from .runs import Run
from .store import Store

Row = dict[str, Any]
LOST, CONFIDENCE = 0.01, 0.95  # "not worse": of static's gain over no adapter, no more lost than this, so surely


def summarise(plan: Plan, store: Store) -> dict[str, Any]:
    """Of what is there; JSON can say all of it."""
    everything, known = plan.everything(), plan.known(store)
    found: dict[str, Any] = {
        "mode": plan.mode.name,
        "runs": len(everything),
        "missing": len(everything) - sum(store.get(run) is not None for run in known),
        "stale": len(plan.stale(store)),
        "seeds": plan.mode.seeds,
        "more_seeds": dict(plan.mode.more_seeds),
        "trials": {part: len(rates[: plan.mode.trials]) for part, rates in RATES.items()},
    }
    for part in ("layer", "step", "time"):
        runs = [run for run in plan.measurements() if run.part == part]
        found[part] = {run.data: _measured(record) for run in runs if (record := store.get(run))}
    found["dense"] = _dense(plan, store)
    none = next((record for run in plan.references() if run.method == "none" if (record := store.get(run))), None)
    found["none"] = none["results"]["0"]["loss"] if none else None
    for part, collect in (("patches", _patches), ("adapter", _adapters)):
        found[part] = defaultdict(list)
        for cell in plan.cells():
            if cell[0] == part:
                found[part][cell[2]] += collect(plan, store, cell)
    found["promises"] = promises(found)
    return found


def _measured(record: Record) -> Row:
    return {"rows": record["rows"], "load": record["load"]}


def _dense(plan: Plan, store: Store) -> dict[str, Row]:
    found = {}
    for width in plan.mode.widths:
        runs = [r for r in plan.references() if r.method == "dense" and r.data == str(width) and r.seed != TRIAL_SEED]
        values = [record["results"]["free"]["0"]["psnr"] for run in runs if (record := store.get(run))]
        if values:
            found[str(width)] = {**_spread(values, "psnr"), "epochs": plan.mode.widths[width]}
    return found


def _spread(values: list[float], name: str) -> Row:
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {name: statistics.fmean(values), "sd": sd, "seeds": len(values)}


def _records(plan: Plan, store: Store, cell: Cell) -> tuple[list[Record], Row]:
    """(final records, learning rate and whether it was at the end of the range)"""
    lr = plan.chosen(cell, store)
    if lr is None:
        return [], {}
    rates = plan.rates(cell)
    edge = len(rates) > 1 and lr in (min(rates), max(rates))
    runs: list[Run] = plan.final(cell, lr)
    return [record for run in runs if (record := store.get(run))], {"lr": lr, "edge": edge}


def _patches(plan: Plan, store: Store, cell: Cell) -> list[Row]:
    records, about = _records(plan, store, cell)
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for record in records:
        for stage, by_rank in record["results"].items():
            for rank, each in by_rank.items():
                groups[stage, rank].append({**each, "stored": record["stored"]})
    return [
        {
            "method": cell[1], "stage": stage, "rank": int(rank), **_spread([e["psnr"] for e in each], "psnr"),
            "percent": statistics.fmean(e["percent"] for e in each),
            "stored": round(statistics.fmean(e["stored"] for e in each)), **about,
        }
        for (stage, rank), each in groups.items()
    ]  # fmt: skip


def _adapters(plan: Plan, store: Store, cell: Cell) -> list[Row]:
    records, about = _records(plan, store, cell)
    groups: dict[str, list[Row]] = defaultdict(list)
    for record in records:
        for rank, each in record["results"].items():
            if int(rank) in plan.mode.ranks:
                more = {name: record[name] for name in ("seed", "stored", "steps", "unit_ms")}
                groups[rank].append({**each, **more})
    return [
        {
            "method": cell[1], "mean_rank": int(rank), **_spread([e["loss"] for e in each], "loss"),
            "by_seed": {e["seed"]: e["loss"] for e in each},
            "rank": statistics.fmean(e["rank"] for e in each),
            "stored": round(statistics.fmean(e["stored"] for e in each)), "steps": each[0]["steps"],
            "step_ms": statistics.median(e["unit_ms"] for e in each), **about,
        }
        for rank, each in groups.items()
    ]  # fmt: skip


# What issue 5 asks for; None where it was not measured.


def promises(found: dict[str, Any]) -> list[Row]:
    rows = []

    def add(what: str, asked: str, value: float | None, kept: bool | None, how: str = "{:.2f}") -> None:
        verdict = "not measured" if value is None else "yes" if kept else "no"
        rows.append(
            {"what": what, "asked": asked, "value": None if value is None else how.format(value), "kept": verdict}
        )

    layer = found["layer"].get("1024x256", {}).get("rows", {})
    for other, most in (("masked 64", 0.5), ("dense", 0.3)):
        for name in ("grouped 64", "grouped 64, of known cells", "grouped 64, in a model"):
            ratio = layer[name]["median"] / layer[other]["median"] if layer else None
            add(f"1024x1024, batch 256: {name} to {other}", f"<= {most}", ratio, ratio is not None and ratio <= most)
    step = next(iter(found["step"].values()), {}).get("rows", {})
    bypass = step.get("LyCORIS LoRA, bypass", {}).get("overhead")
    for name, row in step.items():
        if name.startswith("ours"):
            more = row["overhead"] - bypass
            add(f"step: {name}, overhead less that of LyCORIS's bypass", "<= 0.05", more, more <= 0.05, "{:+.3f}")
    _patch_promises(found, add)
    _adapter_promises(found, add)
    return rows


def _patch_promises(found: dict[str, Any], add: Any) -> None:
    tuned = [row for row in found["patches"].get("256", []) if row["stage"] == "tuned"]
    static = {
        row["percent"]: row["psnr"] for row in sorted(tuned, key=itemgetter("percent")) if row["method"] == "static"
    }
    ours = min(
        (row for row in tuned if row["method"] == "ours"), key=lambda row: abs(row["percent"] - 10), default=None
    )
    if ours and static:
        lead = ours["psnr"] - float(np.interp(ours["percent"], list(static), list(static.values())))
        add(f"patches at {ours['percent']:.1f} % of dense MACs: dB over tuned static, between its ranks by a line",
            ">= 1.5", lead, lead >= 1.5, "{:+.2f}")  # fmt: skip
    dense, times = found["dense"].get("1024"), found["time"].get("1024", {}).get("rows")
    if dense and times:
        near = {r["rank"] for r in found["patches"]["1024"] if r["method"] == "ours"
                and r["psnr"] >= dense["psnr"] - 0.3}  # fmt: skip
        ratios = [times[f"ours {rank}"]["median"] / times["dense 0"]["median"] for rank in near]
        value = min(ratios, default=math.inf)
        add("patches, width 1024: time to dense within 0.3 dB of it", "<= 0.45", value, value <= 0.45)


def _adapter_promises(found: dict[str, Any], add: Any) -> None:
    """With all images below every method within the budget; with fewer not worse than a static LoRA."""
    for data, table in found["adapter"].items():
        rows = {(r["method"], r["mean_rank"]): r for r in table if within(r) or r["method"] == "adlrns"}
        for rank in sorted({rank for name, rank in rows if name == "adlrns"}):
            ours, static = rows["adlrns", rank], rows.get(("lora", rank))
            what = f"adapter, {data} images, mean rank {rank}: loss to "
            if data == "all":
                others = [row for (name, at), row in rows.items() if at == rank and name != "adlrns"]
                if others:
                    best = min(others, key=itemgetter("loss"))
                    kept = within(ours) and ours["loss"] < best["loss"]
                    add(f"{what}{best['method']}'s, the best other", "< 1", ours["loss"] / best["loss"], kept,
                        "{:.4f}" + _plus_minus(ours, best))  # fmt: skip
            elif static:
                _not_worse(f"{what}static's", ours, static, found["none"], add)


def _not_worse(what: str, ours: Row, static: Row, none: float | None, add: Any) -> None:
    """A test of non-inferiority. No number of seeds shows two means to be equal; what they can show is that of what a
    static LoRA gains over no adapter ours does not lose more than a hundredth."""
    error = _error(ours, static)
    if none is None or error is None:
        return
    most = 1 + LOST * (none - static["loss"]) / static["loss"]
    seeds = len(ours["by_seed"].keys() & static["by_seed"].keys())
    ratio = ours["loss"] / static["loss"]
    upper = ratio + float(stats.t.ppf(CONFIDENCE, seeds - 1)) * error / static["loss"]
    add(what, f"surely < {most:.4f}", ratio, within(ours) and upper < most,
        "{:.4f}" + _plus_minus(ours, static) + f", surely < {upper:.4f}")  # fmt: skip


def _plus_minus(ours: Row, other: Row) -> str:
    error = _error(ours, other)
    return "" if error is None else f" ± {error / other['loss']:.4f}"


def _error(ours: Row, other: Row) -> float | None:
    """Of the mean difference. A seed decides the order of the images and their noise, which both have alike."""
    both = ours["by_seed"].keys() & other["by_seed"].keys()
    differences = [ours["by_seed"][seed] - other["by_seed"][seed] for seed in both]
    return statistics.stdev(differences) / len(both) ** 0.5 if len(both) > 1 else None


def within(row: Row) -> bool:
    """It costs what was asked for."""
    return row["rank"] <= 1.02 * row["mean_rank"]
