"""An adapter by blocks of the model: how far each moved, in how many directions, and how fast its spectrum falls."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hina_kohya.loras.summary import FileSummary, ModuleSummary, mean_spectrum
from hina_kohya.watch.curves import clipped
from hina_kohya.watch.figures import LINE, SERIES, Figure, Key, figure

_POINTS = 48  # directions of a spectrum
_ROW = 0.21  # inches


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values' shares [K]; 0 of none. Source: Roy and Vetterli, EUSIPCO 2007."""
    shares = values[values > 0] / values.sum()
    return math.exp(-float((shares * shares.log()).sum())) if len(shares) else 0.0


def norm(modules: Sequence[ModuleSummary]) -> float:
    return math.sqrt(sum(module.energy for module in modules))


def figures(files: Sequence[FileSummary], labels: Sequence[str]) -> list[Figure]:
    """Norms and effective ranks, a bar per file and block, and each file's spectra."""
    blocks = list(dict.fromkeys(block for file in files for block in file.blocks()))
    if not blocks:
        return []
    keys = [Key(label, colour, "bar") for label, colour in zip(labels, SERIES, strict=False)] if len(files) > 1 else []
    norms = [[norm(file.blocks().get(block, [])) for block in blocks] for file in files]
    ranks = [[_mean_rank(file.blocks().get(block, [])) for block in blocks] for file in files]

    def draw(canvas: Any, narrow: bool) -> None:
        panels = canvas.subplots(2, 1) if narrow else canvas.subplots(1, 2, sharey=True)
        for axes, rows, title, x in (
            (panels[0], norms, "How far each block moved", "Frobenius norm of the change"),
            (panels[1], ranks, "In how many directions", "effective rank, mean over its modules"),
        ):
            _bars(axes, blocks, rows, narrow)
            axes.set(title=title, xlabel=x)
        canvas.get_layout_engine().set(w_pad=0.1, h_pad=0.08)

    rows = max(2, len(blocks)) * (1 + 0.5 * (len(files) - 1))
    heights = (1.0 + _ROW * rows, 2.0 + 2 * _ROW * rows)
    caption = (
        "Norms grow with the number and size of a block's modules. The effective rank counts the directions that "
        "matter: exp of the entropy of the singular values. Far below the trained rank: a smaller one may do."
    )
    spectra = [_spectra(file, label if len(files) > 1 else "") for file, label in zip(files, labels, strict=True)]
    return [figure("Blocks", caption, draw, heights, keys), *spectra]


def _mean_rank(modules: Sequence[ModuleSummary]) -> float:
    return float(np.mean([effective_rank(module.values) for module in modules])) if modules else 0.0


def _bars(axes: Any, blocks: list[str], rows: list[list[float]], narrow: bool) -> None:
    width = 0.72 / len(rows)
    for number, values in enumerate(rows):
        shift = (number - (len(rows) - 1) / 2) * width
        axes.barh([place + shift for place in range(len(blocks))], values, width, color=SERIES[number])
    axes.set_yticks(range(len(blocks)), [clipped(block, narrow) for block in blocks])
    axes.set_ylim(len(blocks) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1.05 * max((value for values in rows for value in values), default=0) or 1.0)


def _spectra(file: FileSummary, label: str) -> Figure:
    blocks = file.blocks()
    longest = max(1, *(len(module.values) for module in file.modules))
    table = torch.stack([mean_spectrum(modules, min(_POINTS, longest)) for modules in blocks.values()]).numpy()

    def draw(canvas: Any, narrow: bool) -> None:
        axes = canvas.subplots()
        image = axes.imshow(
            table, aspect="auto", cmap="viridis", interpolation="none", vmin=0, vmax=1,
            extent=(0.5, table.shape[1] + 0.5, len(blocks) - 0.5, -0.5),
        )  # fmt: skip
        bar = canvas.colorbar(image, ax=axes, location="bottom" if narrow else "right")
        bar.set_label("share of the largest")
        axes.set_yticks(range(len(blocks)), [clipped(block, narrow) for block in blocks])
        axes.set_xlabel("direction, the strongest first")
        axes.locator_params(axis="x", nbins=8, integer=True)
        axes.tick_params(length=0)

    height = 0.9 + _ROW * max(3, len(blocks))
    title = f"Spectra of {label}" if label else "Spectra"
    caption = (
        "Singular values of each block's changes, as a mean over its modules. Dark early: few directions carry it."
    )
    return figure(title, caption, draw, (height, height + 0.6))


def rows(file: FileSummary) -> list[dict[str, str]]:
    """The pictures' numbers, for those who read tables."""
    total = sum(module.energy for module in file.modules)
    result = []
    for block, modules in file.blocks().items():
        energy = sum(module.energy for module in modules)
        ranks = [module.rank for module in modules]
        result.append({
            "block": block,
            "modules": str(len(modules)),
            "rank": str(ranks[0]) if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}",
            "norm": f"{energy**0.5:.3g}",
            "share": f"{energy / total:.1%}" if total else "-",
            "effective rank": f"{_mean_rank(modules):.1f}",
        })  # fmt: skip
    return result
