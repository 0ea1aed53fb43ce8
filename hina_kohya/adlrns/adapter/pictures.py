"""Pictures of an ADLRNS file's tables: which directions act at which timestep, and the water level behind it."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hina_kohya.adlrns.adapter.files import Pair

INK, FAINT, ACCENT, PAPER = "#1c1c28", "#b9b9c4", "#2f5fd0", "#fbfbf8"
_LINEAR = 1e-3  # gains are drawn by their logarithm down to this


def ranks(modules: Mapping[str, Pair]) -> Tensor:
    """[L, K] directions kept; a module of one state has them in all."""
    states = max(len(pair.kept) for pair in modules.values())
    return torch.stack([pair.kept.sum(1).expand(states) for pair in modules.values()])


def draw(path: Path, modules: Mapping[str, Pair], blocks: Mapping[str, str]) -> None:
    """Three panels: ranks of all modules, the directions of the module that changes most, gains and their level.

    blocks: module -> the block of the model that it is named by, and the order in which they are shown
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 (no pyplot: no global state, no display)

    modules = {name: modules[name] for name in blocks}
    figure = Figure(figsize=(13, 4.6), dpi=110, facecolor=PAPER, layout="constrained")
    panels = figure.subplots(1, 3)
    for draw_panel, axes in zip((_ranks, _directions, _level), panels, strict=True):
        draw_panel(axes, modules, figure)
    ends = list(itertools.accumulate(len([*group]) for _, group in itertools.groupby(blocks.values())))
    starts = [0, *ends[:-1]]
    labels = [name for name, _ in itertools.groupby(blocks.values())]
    panels[0].set_yticks([(start + end) / 2 for start, end in zip(starts, ends, strict=True)], labels)
    for end in ends[:-1]:
        panels[0].axhline(end, color=PAPER, linewidth=0.8)
    figure.savefig(path)


def _ranks(axes: Any, modules: Mapping[str, Pair], figure: Any) -> None:
    table = ranks(modules)
    image = axes.imshow(
        table.numpy(), aspect="auto", cmap="viridis", interpolation="nearest", extent=(0, 1, len(table), 0)
    )
    figure.colorbar(image, ax=axes, label="directions kept")
    means = ", ".join(f"{mean:.2g}" for mean in table.double().mean(0).tolist())
    axes.set_title(f"mean ranks {means}", loc="left", size=10, color=INK)
    axes.set(xlabel="share of noise", ylabel="modules, by block of the model")


def _directions(axes: Any, modules: Mapping[str, Pair], figure: Any) -> None:
    """Gains as colours, a dot where a direction is kept."""
    from matplotlib.colors import SymLogNorm  # noqa: PLC0415

    name = max(modules, key=lambda each: float(modules[each].kept.sum(1).double().std(correction=0)))
    pair = modules[name]
    gain = pair.gain.float() / pair.gain.float().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    norm = SymLogNorm(_LINEAR, vmin=-1, vmax=1)
    image = axes.imshow(gain.T.numpy(), aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="gain, relative to the largest")
    states, directions = pair.kept.nonzero(as_tuple=True)
    axes.plot(states.numpy(), directions.numpy(), "o", color=INK, markersize=5)
    axes.set_title(f"{name.removeprefix('lora_')[-36:]}: dots are kept", loc="left", size=10, color=INK)
    axes.set(xlabel="bin of the timestep, from least noise", ylabel="direction, sorted by mean gain")
    axes.set_xticks(range(len(pair.kept)), [str(number + 1) for number in range(len(pair.kept))])


def _level(axes: Any, modules: Mapping[str, Pair], figure: Any) -> None:
    """All gains, falling, over the mean rank that they add up to; what is kept in colour."""
    states = max(len(pair.kept) for pair in modules.values())
    gain = torch.cat([pair.gain.float().expand(states, -1).flatten() for pair in modules.values()])
    kept = torch.cat([pair.kept.expand(states, -1).flatten() for pair in modules.values()])
    gain, order = gain.sort(descending=True, stable=True)
    kept = kept[order]
    rank = torch.arange(1, len(gain) + 1) / (len(modules) * states)
    for chosen, colour, label in ((~kept, FAINT, "not kept"), (kept, ACCENT, "kept")):
        axes.plot(rank[chosen].numpy(), gain[chosen].numpy(), ".", color=colour, markersize=3, label=label)
    mean = float(kept.sum()) / (len(modules) * states)
    axes.axvline(mean, color=INK, linestyle=":", label=f"mean rank {mean:.3g}")
    axes.set_yscale("symlog", linthresh=_LINEAR)
    axes.set_title("all directions, by gain", loc="left", size=10, color=INK)
    axes.set(xlabel="mean rank if all to the left were kept", ylabel="gain, relative to the largest")
    axes.legend(frameon=False)
