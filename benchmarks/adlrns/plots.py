"""Layer time, PSNR over multiply-adds, held-out loss over adapter cost."""

from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure  # no pyplot: no global state, no display


def figures(found: dict[str, Any]) -> dict[str, Figure | None]:
    return {"layer": _layer(found), "patches": _patches(found), "adapter": _adapter(found)}


def _panels(count: int) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(6.5 * count, 4.5), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _colors(names: Iterable[Any]) -> dict[Any, str]:
    """One for each, the same in every panel."""
    return {name: f"C{number}" for number, name in enumerate(dict.fromkeys(names))}


def _layer(found: dict[str, Any]) -> Figure | None:
    if not found["layer"]:
        return None
    figure, axes = _panels(len(found["layer"]))
    for axis, (data, each) in zip(axes, found["layer"].items(), strict=True):
        rows = each["rows"]
        for kind, belongs in {
            "static": lambda name: name.startswith("static"),
            "masked": lambda name: name.startswith("masked"),
            "grouped": lambda name: name.startswith("grouped") and "," not in name,
            "grouped, of known cells": lambda name: name.endswith("known cells"),
            "grouped, in a model": lambda name: name.endswith("model"),
        }.items():
            points = [(int(name.split()[1].strip(",")), row["median"]) for name, row in rows.items() if belongs(name)]
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=kind)
        axis.axhline(rows["dense"]["median"], color="grey", linestyle=":", label="dense")
        axis.set(title=f"layer {data}", xlabel="mean rank", ylabel="ms", xscale="log")
        axis.set_ylim(bottom=0)
    axes[-1].legend(fontsize="small")
    return figure


def _patches(found: dict[str, Any]) -> Figure | None:
    tables = {width: rows for width, rows in found["patches"].items() if rows}
    if not tables:
        return None
    figure, axes = _panels(len(tables))
    colors = _colors((row["method"], row["stage"]) for rows in tables.values() for row in rows)
    for axis, (width, rows) in zip(axes, tables.items(), strict=True):
        for name in dict.fromkeys((row["method"], row["stage"]) for row in rows):
            points = sorted((r["percent"], r["psnr"]) for r in rows if (r["method"], r["stage"]) == name)
            style = "-" if name[1] == "tuned" else "--"
            axis.plot(*zip(*points, strict=True), style, marker="o", color=colors[name], label=", ".join(name))
        axis.axhline(found["dense"][width]["psnr"], color="grey", linestyle=":", label="dense, 100 %")
        axis.set(title=f"width {width}", xlabel="multiply-adds, % of dense", ylabel="PSNR on unseen halves, dB")
    axes[0].legend(fontsize=8)
    return figure


def _adapter(found: dict[str, Any]) -> Figure | None:
    tables = {data: rows for data, rows in found["adapter"].items() if rows}
    if not tables:
        return None
    figure, axes = _panels(len(tables))
    colors = _colors(row["method"] for rows in tables.values() for row in rows)
    for axis, (data, rows) in zip(axes, tables.items(), strict=True):
        for name in dict.fromkeys(row["method"] for row in rows):
            points = sorted((r["rank"], r["loss"], r["sd"] or 0.0) for r in rows if r["method"] == name)
            costs, losses, errors = zip(*points, strict=True)
            axis.errorbar(costs, losses, errors, marker="o", capsize=2, color=colors[name], label=name)
        axis.set(title=f"{data} images", xlabel="mean adapter cost, static ranks", ylabel="held-out loss", xscale="log")
        ticks = sorted({row["mean_rank"] for row in rows})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[0].legend(fontsize=8)
    return figure
