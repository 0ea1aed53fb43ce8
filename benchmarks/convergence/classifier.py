"""Digits: a small network that reads upright digits learns to read them turned, as LoRA or with all its weights."""

import copy
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .task import Task, add_lora, digest_of, generator, pretrained

BATCH, NOISE, WIDTH, RANK = 32, 0.6, 128, 4
PRETRAINING = 500


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))


@cache
def _data(turned: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from hina_kohya.demo.data import load_digits  # noqa: PLC0415 (imports scikit-learn)

    train_x, train_y, test_x, test_y = map(torch.from_numpy, load_digits())
    if turned:  # a quarter turn and the negative
        train_x, test_x = (-x.rot90(1, (1, 2)) for x in (train_x, test_x))
    return train_x, train_y, test_x, test_y


def _draw(images: Tensor, labels: Tensor, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random images, each moved by up to a pixel and with fresh noise, so that no run can learn them by heart."""
    rows = torch.randint(len(labels), (count,), generator=random)
    padded = F.pad(images[rows], (1, 1, 1, 1), value=0.0)
    down, right = torch.randint(3, (2, count, 1, 1), generator=random)
    at = torch.arange(8)
    moved = padded[torch.arange(count)[:, None, None], down + at[:, None], right + at]
    noise = torch.randn(moved.shape, generator=random)
    return (moved + NOISE * noise).flatten(1), labels[rows]


@cache
def base(folder: Path) -> nn.Module:
    model = network()
    images, labels, _, _ = _data(False)

    def loss(step: int) -> Tensor:
        x, y = _draw(images, labels, BATCH, generator(0, 1, step))
        return F.cross_entropy(model(x), y)

    return pretrained(folder / "digits.pt", model, loss, PRETRAINING, 3e-3)


@cache
def _held_out() -> tuple[Tensor, Tensor]:
    _, _, images, labels = _data(True)
    return _draw(images, labels, 4096, generator(0, 2))


class TurnedDigits(Task):
    def __init__(self, folder: Path, seed: int, lora: bool):
        self.model, self.seed = copy.deepcopy(base(folder)), seed
        self.named = add_lora(self.model, RANK, seed) if lora else list(self.model.named_parameters())
        self.images, self.labels, _, _ = _data(True)

    def loss(self, step: int) -> Tensor:
        x, y = _draw(self.images, self.labels, BATCH, generator(self.seed, 3, step))
        return F.cross_entropy(self.model(x), y)

    @torch.no_grad()
    def held_out(self) -> float:
        x, y = _held_out()
        return F.cross_entropy(self.model(x), y).item()


def identity(folder: Path) -> str:
    x, _ = _held_out()
    return digest_of(base(folder), x.numpy().tobytes(), repr((BATCH, NOISE, RANK)))
