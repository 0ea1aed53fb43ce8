"""Loss over learning rate, one panel a world."""

from typing import Any

from matplotlib.figure import Figure  # no pyplot: no global state, no display

from .arms import entry_of
from .summary import Sweep


def figures(summary: dict[str, Any]) -> dict[str, Figure | None]:
    return {"rates": _rates(summary)}


def _rates(summary: dict[str, Any]):
    worlds = {world: sweeps for world, sweeps in summary["sweeps"].items() if any(e.best for e in sweeps.values())}
    if not worlds:
        return None
    colours = {arm: f"C{i % 10}" for i, arm in enumerate(summary["mode"]["arms"])}
    figure = Figure(figsize=(6.5 * len(worlds), 5))
    axes = figure.subplots(1, len(worlds), squeeze=False)
    for axis, (world, sweeps) in zip(axes.flat, worlds.items(), strict=True):
        base = summary["base"].get(world)
        for arm, each in sweeps.items():
            _draw(axis, arm, each, colours[arm])
        best = min(each.best[1] for each in sweeps.values() if each.best)
        if base is not None:
            axis.axhline(base, color="black", linewidth=0.6, linestyle=":")
            axis.set_ylim(best - 0.05 * (base - best), base + 0.1 * (base - best))  # what blew up leaves the picture
        axis.set(title=world, xscale="log", xlabel="learning rate", ylabel="held-out loss")
        axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def _draw(axis, arm: str, each: Sweep, colour: str) -> None:
    points = [(lr, loss) for lr, loss in each.losses.items() if loss is not None]
    style = {"color": colour, "label": arm, "linestyle": "-" if entry_of(arm).ours else "--"}
    if len(each.losses) == 1 and points:  # it finds its rate itself
        axis.axhline(points[0][1], linewidth=0.9, **style)
    elif points:
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, **style)
