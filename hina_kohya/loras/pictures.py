"""One picture of an adapter file: where its energy is, and how fast its spectra fall; of two, how alike they are."""

from pathlib import Path
from typing import Any

import torch

from hina_kohya.files import atomic
from hina_kohya.loras.likeness import Likeness
from hina_kohya.loras.summary import FileSummary

INK, ACCENT, SECOND, PAPER = "#1c1c28", "#2f5fd0", "#c8553d", "#fbfbf8"
_POINTS = 64


def one_file(path: Path, summary: FileSummary) -> None:
    """Energy by block, spectra by block, and what is kept by how many bytes."""
    figure = _figure(13)
    energy, spectra, curve = figure.subplots(1, 3)
    blocks = summary.blocks()
    total = sum(module.energy for module in summary.modules) or 1.0
    shares = [100 * sum(module.energy for module in modules) / total for modules in blocks.values()]
    _bars(energy, list(blocks), shares, ACCENT)
    _title(energy, "where the energy is", "% of the squared norm")
    count = max([1, *(len(module.values) for module in summary.modules)])
    table = torch.zeros(len(blocks), min(count, _POINTS), dtype=torch.float64)
    for row, modules in zip(table, blocks.values(), strict=True):
        for module in modules:
            kept = module.values[: table.shape[1]]
            row[: len(kept)] += kept.square() / max(module.energy, 1e-300) / len(modules)
    image = spectra.imshow(
        (100 * table).clamp_min(1e-2).log10().numpy(), aspect="auto", cmap="viridis", interpolation="nearest"
    )
    figure.colorbar(image, ax=spectra, label="log10 of % of the module's energy")
    spectra.set_yticks([])
    _title(spectra, "directions of each block, in the same order", "direction")
    values = torch.cat([module.values for module in summary.modules] or [torch.zeros(1)]).square()
    kept = values.sort(descending=True).values.cumsum(0) / values.sum().clamp_min(1e-300)
    curve.plot((100 * torch.arange(1, len(kept) + 1) / len(kept)).numpy(), (100 * kept).numpy(), color=ACCENT)
    curve.grid(alpha=0.3)
    _title(curve, "what one water level keeps", "% of all directions", "% of the energy")
    _save(figure, path)


def two_files(path: Path, first: FileSummary, second: FileSummary, likeness: dict[str, Likeness]) -> None:
    """Norms and likeness by block."""
    figure = _figure(11)
    norms, alike = figure.subplots(1, 2)
    names = list(likeness)
    place = range(len(names))
    for offset, colour, label, values in (
        (-0.2, ACCENT, first.path.name, [each.first**0.5 for each in likeness.values()]),
        (0.2, SECOND, second.path.name, [each.second**0.5 for each in likeness.values()]),
    ):
        norms.barh([number + offset for number in place], values, 0.4, color=colour, label=label)
    norms.set_yticks(list(place), names, size=8)
    norms.invert_yaxis()
    norms.set_xlim(0, 1.05 * max((max(each.first, each.second) ** 0.5 for each in likeness.values()), default=0) or 1.0)
    norms.legend(frameon=False, fontsize=8)
    _title(norms, "norm of the change", "norm")
    _bars(alike, [""] * len(names), [each.cosine for each in likeness.values()], INK)
    alike.set_xlim(min(-0.05, *(each.cosine for each in likeness.values())), 1)
    _title(alike, "how alike", "cosine")
    _save(figure, path)


def _figure(width: float) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415 (no pyplot: no global state, no display)

    return Figure(figsize=(width, 5), dpi=110, facecolor=PAPER, layout="constrained")


def _bars(axes: Any, names: list[str], values: list[float], colour: str) -> None:
    axes.barh(range(len(names)), values, color=colour)
    axes.set_xlim(0, 1.05 * max(values, default=0.0) or 1.0)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.invert_yaxis()


def _title(axes: Any, title: str, x: str, y: str = "") -> None:
    axes.set_title(title, loc="left", size=10, color=INK)
    axes.set(xlabel=x, ylabel=y)


def _save(figure: Any, path: Path) -> None:
    with atomic(path) as unfinished:
        figure.savefig(unfinished)
