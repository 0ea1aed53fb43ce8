"""Pictures of a run: what the model draws before and after, and how the loss fell."""

import dataclasses as dc
from pathlib import Path

import numpy as np

from hina_kohya.watch.smoothing import smoothed

INK, FAINT, ACCENT, OTHER = "#1c1c28", "#8a8a9a", "#2f5fd0", "#c9721b"
RIGHT, WRONG, PAPER = "#2e9e5b", "#d64545", "#fbfbf8"
SCALE, FRAME, GAP = 8, 3, 4  # a pixel's size, the judge's frame, the space between two images


@dc.dataclass(frozen=True)
class Strip:
    """What one model drew for a caption. images [n, h, w] in [-1, 1]; right [n]: the judge agrees with the caption.

    share: right ones of all that were drawn, not only of those that are shown
    """

    images: np.ndarray
    right: np.ndarray
    share: float


@dc.dataclass(frozen=True)
class Row:
    """One caption of the sample grid. real [n, h, w] in [-1, 1]; drawn: a strip for each model."""

    caption: str
    taught: bool
    real: np.ndarray
    drawn: tuple[Strip, ...]


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


def sample_grid(path: Path, rows: list[Row], models: list[str], title: str, subtitle: str) -> None:
    """Rows are captions; columns: real training images, then what each of the models drew from the same noise."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (no pyplot: no global state, no display)

    widths = [max(len(r.real) for r in rows), *[max(len(r.drawn[0].images) for r in rows)] * len(models)]
    label, tile, top = 1.35, 0.5, 1.25
    width = label + sum(widths) * tile + 1.25 + 0.75 * (len(models) - 1)
    height = top + len(rows) * (tile + 0.06) + 0.42
    figure = Figure(figsize=(width, height), dpi=120, facecolor=PAPER)
    figure.text(0.25 / width, 1 - 0.36 / height, title, size=15, weight="bold", color=INK, va="center")
    figure.text(0.25 / width, 1 - 0.66 / height, subtitle, size=9.5, color=FAINT, va="center")

    left = label
    for column, (heading, count) in enumerate(zip(["real images", *models], widths, strict=True)):
        figure.text(left / width, 1 - (top - 0.14) / height, heading, size=10.5, weight="bold", color=INK, va="center")
        for r, row in enumerate(rows):
            y = height - top - (r + 1) * (tile + 0.06)
            strip = row.drawn[column - 1] if column else Strip(row.real, np.empty(0), 1.0)
            axes = figure.add_axes((left / width, y / height, count * tile / width, tile / height))
            axes.imshow(
                _strip(strip.images, strip.right if column else None, count), interpolation="lanczos", aspect="auto"
            )
            axes.set_axis_off()
            middle = (y + tile / 2) / height
            if column == 0:
                x, colour, weight = (label - 0.15) / width, INK, "normal"
                if row.taught:
                    colour, weight = ACCENT, "bold"
                figure.text(x, middle, row.caption, size=10.5, ha="right", va="center", color=colour, weight=weight)
            else:
                colour = RIGHT if strip.share >= 0.5 else WRONG
                x = (left + count * tile + 0.08) / width
                figure.text(x, middle, f"{strip.share:.0%}", size=9.5, color=colour, va="center", weight="bold")
        left += count * tile + (0.3 if column == 0 else 0.75)
    note = "frames and percentages: an independent classifier says the image shows its caption (green) or not (red)"
    figure.text(0.25 / width, 0.2 / height, note, size=8.5, color=FAINT, va="center")
    figure.savefig(path)


def loss_plot(path: Path, curves: dict[str, list[float]], title: str) -> None:
    """Every step faintly, the trend in full. curves: optimizer -> loss of each step; the first one is ours."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 4.2), dpi=120, facecolor=PAPER, layout="constrained")
    axes = figure.add_subplot(facecolor=PAPER)
    for (name, losses), colour in reversed(list(zip(curves.items(), (ACCENT, OTHER, FAINT), strict=False))):
        steps = np.arange(1, len(losses) + 1)
        axes.plot(steps, losses, color=colour, alpha=0.22, linewidth=0.9)
        decay = max(0.5, 1 - 10 / max(len(losses), 1))
        axes.plot(steps, smoothed(losses, decay), color=colour, linewidth=2.2, label=name)
    everything = [loss for losses in curves.values() for loss in losses]
    axes.set_xlim(1, max(2, *map(len, curves.values())))
    low, high = np.quantile(everything, (0.01, 0.99))  # one outlier must not flatten the curve
    axes.set_ylim(0.85 * float(low), 1.1 * float(high))
    axes.set_title(title, loc="left", color=INK, weight="bold", size=12)
    axes.set_xlabel("training step", color=INK)
    axes.set_ylabel("training loss; faint: each step, full: moving average", color=INK)
    axes.tick_params(colors=FAINT)
    axes.grid(axis="y", color=FAINT, alpha=0.2)
    axes.legend(frameon=False, labelcolor=INK, reverse=True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path)
