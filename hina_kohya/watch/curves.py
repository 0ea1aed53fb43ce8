"""Curves over steps: loss and held-out loss with the best step, learning rates, whatever else was logged."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from hina_kohya.watch.events import AVERAGE, LOSS, Curve
from hina_kohya.watch.figures import GOOD, INK, LINE, SERIES, Figure, Key, figure, thinned
from hina_kohya.watch.findings import best, validation
from hina_kohya.watch.run import Run
from hina_kohya.watch.smoothing import smoothed

MOST_LINES = len(SERIES)
_MOST_ROWS = 48  # of a picture of many curves
_COLUMNS = 160  # its spans of steps


def loss(runs: Sequence[Run]) -> Figure | None:
    """Every step faintly, its average, the held-out loss, the lowest point of the latter. One colour per run."""
    shown = [(run, run.curves.get(LOSS) or run.curves.get(AVERAGE)) for run in runs]
    keys = _keys(runs)
    if not keys:
        return None

    def draw(canvas: Any, narrow: bool) -> None:
        axes = canvas.subplots()
        for number, (run, curve) in enumerate(shown):
            _one_loss(axes, run, curve, number, len(runs))
        _limits(axes, [curve for _, curve in shown if curve is not None], [validation(run) for run in runs])
        _plain(axes, "step", "loss")

    caption = "One step's loss depends mostly on the noise and the timestep that it drew; look at the average."
    if any(validation(run) is not None for run in runs):
        caption += " Held out: images that were not trained on. The run is best where that is lowest."
    return figure("Loss", caption, draw, (3.6, 3.2), keys)


def _keys(runs: Sequence[Run]) -> list[Key]:
    trains = any(tag in run.curves for run in runs for tag in (LOSS, AVERAGE))
    outside = any(validation(run) is not None for run in runs)
    alone = len(runs) == 1
    training, held = _colours(0, 1) if alone else (INK, INK)
    keys = [] if alone or not (trains or outside) else [Key("AB"[n], SERIES[n]) for n in range(len(runs))]
    keys += [Key("each step", training, "faint"), Key("average", training)] if trains else []
    return keys + ([Key("held out", held, "dots"), Key("lowest", GOOD if alone else INK, "mark")] if outside else [])


def _one_loss(axes: Any, run: Run, curve: Curve | None, number: int, count: int) -> None:
    colour, held = _colours(number, count)
    if curve is not None and len(curve.finite()):
        finite = curve.finite()
        axes.plot(*thinned(curve.steps, curve.values), color=colour, alpha=0.22, linewidth=0.8)
        average = run.curves.get(AVERAGE)
        if average is None or not len(average.finite()):
            decay = max(0.5, 1 - 10 / len(finite))
            average = Curve(finite.steps, smoothed(finite.values.tolist(), decay), finite.times)
        axes.plot(*thinned(average.steps, average.values), color=colour, linewidth=1.9)
        if len(finite) < len(curve):
            axes.axvline(int(curve.steps[~np.isfinite(curve.values)][0]), color=INK, linewidth=1, linestyle=":")
    outside = validation(run)
    if outside is not None:
        axes.plot(*thinned(outside.steps, outside.values), color=held, linewidth=1.6, marker="o", markersize=3)
        place = best(outside)
        step, value = outside.steps[place], outside.values[place]
        mark = _lowest(number, count)
        axes.axvline(step, color=mark, linewidth=0.9, linestyle="--")
        axes.plot([step], [value], color=mark, marker="o", markersize=8, markerfacecolor="none", markeredgewidth=1.8)
        steps = outside.steps if curve is None else curve.steps
        left = 2 * step <= int(steps[0]) + int(steps[-1])
        axes.annotate(f"step {step}", (step, value), (6 if left else -6, -13), textcoords="offset points",
                      ha="left" if left else "right", color=mark, weight="bold")  # fmt: skip


def _colours(number: int, count: int) -> tuple[str, str]:
    """Of the training and of the held-out loss: alone they differ, beside another run they are the run's."""
    return (SERIES[0], SERIES[1]) if count == 1 else (SERIES[number], SERIES[number])


def _lowest(number: int, count: int) -> str:
    return GOOD if count == 1 else SERIES[number]


def _limits(axes: Any, curves: list[Curve], outside: list[Curve | None]) -> None:
    """A few outliers must not flatten the curves."""
    values = [curve.finite().values for curve in curves]
    lows = [float(np.quantile(each, 0.01)) for each in values if len(each)]
    highs = [float(np.quantile(each, 0.99)) for each in values if len(each)]
    lows += [float(each.values.min()) for each in outside if each is not None]
    highs += [float(each.values.max()) for each in outside if each is not None]
    if lows:
        span = max(highs) - min(lows) or abs(max(highs)) or 1.0
        axes.set_ylim(min(lows) - 0.12 * span, max(highs) + 0.06 * span)


def _plain(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.margins(x=0.01)


def rates(runs: Sequence[Run]) -> Figure | None:
    """Learning rates by group; where an optimizer finds its own, what it makes of them."""
    lines: list[tuple[str, Curve, str, str, float]] = []
    for number, run in enumerate(runs):
        groups = _alike(rate_curves(run))
        for place, (name, curve) in enumerate(groups[:MOST_LINES]):
            prefix = f"{'AB'[number]}: " if len(runs) > 1 else ""
            colour = SERIES[place] if len(runs) == 1 else SERIES[number]
            style = "-" if len(runs) == 1 else ("-", "--", ":", "-.")[place % 4]
            width = 3.6 if len(runs) > 1 and number == 0 else 1.6  # the same rates twice: both are seen
            lines.append((f"{prefix}{name}", curve, colour, style, width))
    if not lines:
        return None
    values = np.concatenate([curve.finite().values for _, curve, *_ in lines])
    values = values[values > 0]
    top = [float(curve.finite().values.max(initial=0)) for _, curve, *_ in lines]
    top = [value for value in top if value > 0]
    logarithmic = bool(len(values)) and bool(top) and max(top) > 30 * min(top)

    def draw(canvas: Any, narrow: bool) -> None:
        axes = canvas.subplots()
        for _, curve, colour, style, width in lines:
            axes.plot(*thinned(curve.steps, curve.values), color=colour, linewidth=width, linestyle=style)
        if logarithmic:
            axes.set_yscale("log")
        elif len(values):
            axes.set_ylim(0, 1.08 * float(values.max()))
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
        _plain(axes, "step", "learning rate")

    keys = [Key(name, colour, "line" if style == "-" else "dash") for name, _, colour, style, _ in lines]
    return figure("Learning rates", "What the optimizer was given, by group of parameters.", draw, (2.5, 2.6), keys)


def rate_curves(run: Run) -> dict[str, Curve]:
    """name -> curve; d * lr in place of lr where the optimizer finds d (Prodigy, D-Adaptation)."""
    found: dict[str, tuple[int, Curve]] = {}
    for tag, curve in run.curves.items():
        match = re.match(r"lr/(?:(d\*lr|d\*eff_lr)/)?(.+)", tag, re.DOTALL)
        if match and len(curve.finite()):
            weight = (None, "d*lr", "d*eff_lr").index(match[1])
            if weight >= found.get(match[2], (-1, curve))[0]:
                found[match[2]] = weight, curve
    return {f"{name}{(' (d x lr)' if weight else '')}": curve for name, (weight, curve) in found.items()}


def _alike(curves: dict[str, Curve]) -> list[tuple[str, Curve]]:
    """Groups whose rates are the same are one line."""
    found: list[tuple[list[str], Curve]] = []
    for name, curve in curves.items():
        for names, other in found:
            if len(curve) == len(other) and np.allclose(curve.values, other.values, rtol=1e-6, atol=0, equal_nan=True):
                names.append(name)
                break
        else:
            found.append(([name], curve))
    return [(_short(names), curve) for names, curve in found]


def _short(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more alike"


def others(run: Run) -> list[Figure]:
    """What else was logged, by the tag's words before the last: a few curves as lines, many as a map over the steps."""
    families: dict[str, dict[str, Curve]] = {}
    for tag, curve in run.curves.items():
        head, _, name = tag.rpartition("/")
        if head != "loss" and not head.startswith(("lr", "loss/validation")) and len(curve.finite()) > 1:
            families.setdefault(head or "others", {})[name] = curve
    return [_map(head, rows) if len(rows) > MOST_LINES else _lines(head, rows) for head, rows in families.items()]


def _lines(head: str, rows: dict[str, Curve]) -> Figure:
    def draw(canvas: Any, narrow: bool) -> None:
        axes = canvas.subplots()
        for colour, curve in zip(SERIES, rows.values(), strict=False):
            axes.plot(*thinned(curve.steps, curve.values), color=colour, linewidth=1.4)
        _plain(axes, "step", clipped(head, True))

    keys = [Key(name, colour) for colour, name in zip(SERIES, rows, strict=False)]
    return figure(head, "As the trainer logged it.", draw, (2.3, 2.4), keys)


def _map(head: str, rows: dict[str, Curve]) -> Figure:
    names = list(rows)[:_MOST_ROWS]
    low = min(int(rows[name].steps[0]) for name in names)
    high = max(int(rows[name].steps[-1]) for name in names)
    edges = np.linspace(low, high + 1, min(_COLUMNS, high + 1 - low) + 1)
    table = np.full((len(names), len(edges) - 1), np.nan)
    for row, name in zip(table, names, strict=True):
        curve = rows[name].finite()
        places = np.digitize(curve.steps, edges) - 1
        for place in np.unique(places):
            row[place] = curve.values[places == place].mean()
    positive = bool((table[np.isfinite(table)] > 0).all())
    table = np.log10(table) if positive else table

    def draw(canvas: Any, narrow: bool) -> None:
        axes = canvas.subplots()
        image = axes.imshow(table, aspect="auto", cmap="viridis", interpolation="none",
                            extent=(low, high + 1, len(names) - 0.5, -0.5))  # fmt: skip
        bar = canvas.colorbar(image, ax=axes, location="bottom" if narrow else "right")
        bar.set_label(f"{'log10 of ' if positive else ''}{clipped(head, True)}")
        axes.set_yticks(range(len(names)), [clipped(name, narrow) for name in names])
        axes.set_xlabel("step")
        axes.tick_params(length=0)

    rest = f" {len(rows) - len(names)} more are not shown." if len(rows) > len(names) else ""
    height = 0.9 + 0.19 * len(names)
    return figure(head, f"One row each, over the steps.{rest}", draw, (height, height + 0.6))


def clipped(name: str, narrow: bool) -> str:
    """What fits beside a picture; the end of a long name tells more than its middle."""
    name = re.sub(r"[\x00-\x1f\x7f]", " ", name)
    width = sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in name)
    most = (26 if narrow else 44) * len(name) // max(width, 1)
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"
