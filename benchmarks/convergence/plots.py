"""Loss-versus-budget curves of every workload, and performance profiles."""

import math
from typing import Any

from matplotlib.figure import Figure  # no pyplot: no global state, no display

from .optimizers import BASELINES
from .plan import FIRST_HALF
from .summary import TAUS


def _style(name: str, told_apart: list[str]) -> dict[str, Any]:
    look: dict[str, Any] = {"linestyle": "--"} if name in BASELINES else {}
    if name not in told_apart:
        label = "other baselines" if name in BASELINES else "other variants"
        return look | {"color": "silver", "label": label, "linewidth": 0.8, "zorder": 1}
    return look | {"color": f"C{told_apart.index(name)}", "label": name, "linewidth": 1.8}


def figures(summary: dict[str, Any]) -> dict[str, Figure | None]:
    """curves and profiles, where there is something for them."""
    mode = summary["mode"]
    order = [name for name in mode.optimizers if name in (*FIRST_HALF, *mode.confirmed)]
    return {"curves": _curves(summary, order), "profiles": _profiles(summary, order)}


def _curves(summary: dict[str, Any], told_apart: list[str]):
    workloads = {name: row for name, row in summary["workloads"].items() if any(each.mean for each in row.values())}
    if not workloads:
        return None
    columns = min(2, len(workloads))
    rows = math.ceil(len(workloads) / columns)
    figure = Figure(figsize=(7 * columns, 4.2 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(workloads) :]:
        axis.set_visible(False)
    for axis, (workload, results) in zip(axes.flat, workloads.items(), strict=False):
        for name, each in results.items():
            if not each.mean:
                continue
            steps = list(each.losses)
            style = _style(name, told_apart)
            axis.plot(steps, [loss for _, loss in each.mean], **style)
            low, high = ([pick(each.losses[n]) for n in steps] for pick in (min, max))
            if name in told_apart:
                axis.fill_between(steps, low, high, color=style["color"], alpha=0.1, linewidth=0)
        if (target := summary["targets"][workload]) is not None:
            axis.axhline(target, color="black", linewidth=0.6, linestyle=":")
        seen = [loss for name, each in results.items() if name in told_apart for _, loss in each.mean]
        if seen:  # what is far off may leave the picture
            room = 0.15 * (max(seen) - min(seen)) + 1e-9
            axis.set_ylim(min(seen) - room, max(seen) + room)
        axis.set(title=workload, xscale="log", xlabel="steps, each with its whole schedule", ylabel="held-out loss")
        axis.set_xticks(steps := sorted({n for each in results.values() for n in each.losses}), map(str, steps))
        axis.minorticks_off()
    _legend(figure, axes)
    return figure


def _profiles(summary: dict[str, Any], told_apart: list[str]):
    kinds = ("steps", "optimizer time")
    if not any(summary["profiles"][half]["steps"] for half in (1, 2)):
        return None
    figure = Figure(figsize=(14, 8))
    axes = figure.subplots(2, 2, squeeze=False, sharey=True)
    for row, half in zip(axes, (1, 2), strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            for name, share in summary["profiles"][half][kind].items():
                axis.plot(TAUS, share, drawstyle="steps-post", **_style(name, told_apart))
            axis.set(title=f"half {half}: {kind} to target", xlabel="times the least", ylabel="share of workloads")
            axis.set_ylim(0, 1.03)
    _legend(figure, axes)
    return figure


def _legend(figure, axes) -> None:
    found = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = 6
    figure.legend(found.values(), found.keys(), loc="lower center", ncols=columns, fontsize=8, frameon=False)
    space = 0.25 * math.ceil(len(found) / columns) + 0.1
    figure.tight_layout(rect=(0, space / figure.get_figheight(), 1, 1))
