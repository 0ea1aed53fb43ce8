"""Pictures of a run: what the model draws before and after, and how the loss fell."""

import dataclasses as dc
from pathlib import Path

import numpy as np

from hina_kohya.watch.smoothing import smoothed

INK, FAINT, ACCENT, RIGHT, WRONG, PAPER = "#1c1c28", "#8a8a9a", "#2f5fd0", "#2e9e5b", "#d64545", "#fbfbf8"
SCALE, FRAME, GAP = 8, 3, 4  # a pixel's size, the judge's frame, the space between two images


@dc.dataclass(frozen=True)
class Row:
    """One caption of the sample grid. images [n, h, w] in [-1, 1]; right [n]: the judge agrees with the caption."""

    caption: str
    taught: bool
    real: np.ndarray
    base: np.ndarray
    base_right: np.ndarray
    adapted: np.ndarray
    adapted_right: np.ndarray
    base_share: float
    adapted_share: float


def _enlarge(image: np.ndarray) -> np.ndarray:
    from PIL import Image  # noqa: PLC0415

    h, w = image.shape
    grey = Image.fromarray(((1 - np.clip(image, -1, 1)) * 127.5).astype(np.uint8))
    return np.asarray(grey.resize((w * SCALE, h * SCALE), Image.Resampling.BICUBIC))


def _strip(images: np.ndarray, right: np.ndarray | None, places: int) -> np.ndarray:
    """Images side by side, [H, W, 3] uint8, each framed by the judge's opinion if there is one; the rest is paper."""
    from matplotlib.colors import to_rgb  # noqa: PLC0415

    def colour(name: str) -> np.ndarray:
        return (np.array(to_rgb(name)) * 255).astype(np.uint8)

    paper = colour(PAPER)
    tiles = []
    for i, image in enumerate(images):
        ink = _enlarge(image)
        frame = PAPER if right is None else RIGHT if right[i] else WRONG
        tile = np.empty((ink.shape[0] + 2 * FRAME, ink.shape[1] + 2 * FRAME, 3), np.uint8)
        tile[:] = colour(frame)
        tile[FRAME:-FRAME, FRAME:-FRAME] = ink[..., None]
        tiles.append(np.pad(tile, ((0, 0), (0, GAP), (0, 0)), constant_values=0))
        tiles[-1][:, -GAP:] = paper
    tiles += [np.broadcast_to(paper, tiles[0].shape)] * (places - len(images))
    return np.concatenate(tiles, axis=1)[:, :-GAP]


def sample_grid(path: Path, rows: list[Row], title: str, subtitle: str) -> None:
    """Rows are captions; columns: real training images, the base model, the same noise through the adapter."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (no pyplot: no global state, no display)

    widths = [max(len(r.real) for r in rows), *[max(len(r.base) for r in rows)] * 2]
    label, tile, top = 1.35, 0.5, 1.25
    width = label + sum(widths) * tile + 2.0
    height = top + len(rows) * (tile + 0.06) + 0.42
    figure = Figure(figsize=(width, height), dpi=120, facecolor=PAPER)
    figure.text(0.25 / width, 1 - 0.36 / height, title, size=15, weight="bold", color=INK, va="center")
    figure.text(0.25 / width, 1 - 0.66 / height, subtitle, size=9.5, color=FAINT, va="center")

    left = label
    for heading, count, column in (
        ("real images", widths[0], 0),
        ("base model", widths[1], 1),
        ("with adapter", widths[2], 2),
    ):
        figure.text(left / width, 1 - (top - 0.14) / height, heading, size=10.5, weight="bold", color=INK, va="center")
        for r, row in enumerate(rows):
            y = height - top - (r + 1) * (tile + 0.06)
            images, right = ((row.real, None), (row.base, row.base_right), (row.adapted, row.adapted_right))[column]
            axes = figure.add_axes((left / width, y / height, count * tile / width, tile / height))
            axes.imshow(_strip(images, right, count), interpolation="lanczos", aspect="auto")
            axes.set_axis_off()
            middle = (y + tile / 2) / height
            if column == 0:
                x, colour, weight = (label - 0.15) / width, INK, "normal"
                if row.taught:
                    colour, weight = ACCENT, "bold"
                figure.text(x, middle, row.caption, size=10.5, ha="right", va="center", color=colour, weight=weight)
            else:
                share = row.base_share if column == 1 else row.adapted_share
                colour = RIGHT if share >= 0.5 else WRONG
                x = (left + count * tile + 0.08) / width
                figure.text(x, middle, f"{share:.0%}", size=9.5, color=colour, va="center", weight="bold")
        left += count * tile + (0.3 if column == 0 else 0.75)
    note = "frames and percentages: an independent classifier says the image shows its caption (green) or not (red)"
    figure.text(0.25 / width, 0.2 / height, note, size=8.5, color=FAINT, va="center")
    figure.savefig(path)


def loss_plot(path: Path, losses: list[float], title: str) -> None:
    """Every step faintly, the trend in full."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    steps = np.arange(1, len(losses) + 1)
    figure = Figure(figsize=(8, 4.2), dpi=120, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    axes.plot(steps, losses, color=ACCENT, alpha=0.22, linewidth=0.9, label="each step")
    decay = max(0.5, 1 - 10 / max(len(losses), 1))
    axes.plot(steps, smoothed(losses, decay), color=ACCENT, linewidth=2.2, label="moving average")
    axes.set_xlim(1, max(len(losses), 2))
    low, high = np.quantile(losses, (0.01, 0.99))  # one outlier must not flatten the curve
    axes.set_ylim(0.85 * float(low), 1.1 * float(high))
    axes.set_title(title, loc="left", color=INK, weight="bold", size=12)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss (mean squared error of the velocity)", color=INK)
    axes.tick_params(colors=FAINT)
    axes.grid(axis="y", color=FAINT, alpha=0.2)
    axes.legend(frameon=False, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
