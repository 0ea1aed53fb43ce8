"""What a run leaves behind for people: the verdict, the pictures, summary.json."""

import dataclasses as dc
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hina_kohya
from hina_kohya.demo import plots
from hina_kohya.files import atomic

from .data import WORDS, caption, load_digits
from .judge import Judge, Verdict
from .model import DigitModel
from .sample import sample

SHOWN, SHOWN_REAL = 7, 3
LIBRARIES = (
    "torch",
    "accelerate",
    "diffusers",
    "transformers",
    "lycoris-lora",
    "bitsandbytes",
    "safetensors",
    "numpy",
    "scikit-learn",
)


@dc.dataclass(frozen=True)
class Drawn:
    """Generated images, the digits they were asked for and the digits the judge reads."""

    asked: np.ndarray
    images: np.ndarray
    read: np.ndarray

    def verdict(self) -> Verdict:
        return Verdict.of(self.asked, self.read)

    def of(self, digit: int) -> tuple[np.ndarray, np.ndarray]:
        """The first images of a digit and whether each is right."""
        rows = np.flatnonzero(self.asked == digit)[:SHOWN]
        return self.images[rows], self.read[rows] == digit


def draw(model: DigitModel, judge: Judge, digits: list[int], count: int, seed: int) -> Drawn:
    """`count` images, the digits in turn."""
    asked = [digits[i % len(digits)] for i in range(count)]
    images = sample(model, [caption(d) for d in asked], seed)
    return Drawn(np.asarray(asked), images.numpy(), judge.read(images))


def join(parts: list[Drawn]) -> Drawn:
    return Drawn(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dc.fields(Drawn)))


def percent(share: float) -> str:
    """One digit after the point where it says something."""
    return f"{share:.1%}".replace(".0%", "%")


def save_samples(path: Path, taught: list[int], drawn: dict[str, Drawn]) -> None:
    """The grid: taught digits first, then what the base model knew. drawn: by model, the base model first."""
    train_x, train_y, _, _ = load_digits()
    shares = {name: each.verdict().per_digit for name, each in drawn.items()}
    base, *adapted = drawn
    present = sorted({int(d) for d in drawn[base].asked}, key=lambda d: (d not in taught, d))
    rows = [
        plots.Row(
            caption=f"“{WORDS[d]}”",
            taught=d in taught,
            real=train_x[train_y == d][:SHOWN_REAL],
            drawn=tuple(plots.Strip(*each.of(d), shares[name][d]) for name, each in drawn.items()),
        )
        for d in present
    ]
    right = {name: percent(float(np.mean([share[d] for d in taught]))) for name, share in shares.items()}
    names = " and ".join(WORDS[d] for d in taught)
    after = ", ".join(f"{right[name]} {name}" for name in adapted)
    title = f"Asked for {names}: {right[base]} right before, {after}"
    subtitle = f"caption “{caption(taught[0])}”; the same noise in every column; 8x8 pixels, enlarged"
    with atomic(path) as unfinished:
        plots.sample_grid(unfinished, rows, list(drawn), title, subtitle)


def save_loss(path: Path, curves: dict[str, list[float]], title: str) -> None:
    """curves: optimizer -> loss of each step; the first one stands out."""
    with atomic(path) as unfinished:
        plots.loss_plot(unfinished, curves, title)


def save_json(path: Path, content: dict[str, Any]) -> None:
    with atomic(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    found = {"hina-kohya": hina_kohya.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def optimizer_report(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    report: Any = getattr(optimizer, "get_optimization_info", None)
    return report() if report else None
