"""scikit-learn's handwritten digits as captioned training images, in an order that depends on (seed, step) only."""

import dataclasses as dc
import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from .errors import UserError

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}",
    "a picture of the number {}",
    "the handwritten digit {}",
    "a handwritten {}",
)


def caption(digit: int, template: str = TEMPLATES[0]) -> str:
    return template.format(WORDS[digit])


@lru_cache(maxsize=1)
def load_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(train images, train labels, test images, test labels); images [n, 8, 8] in [-1, 1].

    The split is fixed: the base model, the adapters and the judge see the training part only; the test part tells how
    far the judge can be trusted.
    """
    from sklearn import datasets, model_selection  # noqa: PLC0415 (a second of import)

    digits: Any = datasets.load_digits()
    images = (digits.images / 8.0 - 1.0).astype(np.float32)
    split: Any = model_selection.train_test_split(
        images, digits.target, test_size=0.2, random_state=0, stratify=digits.target
    )
    train_x, test_x, train_y, test_y = split
    return train_x, train_y, test_x, test_y


@dc.dataclass(frozen=True)
class Batch:
    """What one micro-step trains on. pixels, noise: [B, 1, 8, 8]; timesteps: [B]; captions: B strings."""

    pixels: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    captions: list[str]


class DigitImages:
    """Training images of some digits; `batch(index)` depends on seed and index only, so resuming needs no state."""

    def __init__(self, digits: list[int], seed: int, num_images: int | None = None, num_timesteps: int = 1000):
        images, labels, _, _ = load_digits()
        rows = np.concatenate([np.flatnonzero(labels == d)[:num_images] for d in digits])
        self.pixels = torch.from_numpy(images[rows]).unsqueeze(1)
        self.labels = torch.from_numpy(labels[rows])
        self.seed = seed
        self.num_timesteps = num_timesteps

    def __len__(self) -> int:
        return len(self.labels)

    def hold_out(self, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixels [n, 1, 8, 8], labels [n]) of a share of the images, which are not trained on any more.

        Raises UserError where one side would have none.
        """
        total = len(self)
        count = round(share * total)
        if not 0 < count < total:
            raise UserError(
                f"validation_split is {share:g}: {count} of {total} images would be held out; give at least "
                f"{math.ceil(1e4 / total) / 1e4:g} and less than 1"
            )
        rows = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        out, kept = rows[:count], rows[count:].sort().values
        pixels, labels = self.pixels[out], self.labels[out]
        self.pixels, self.labels = self.pixels[kept], self.labels[kept]
        return pixels, labels

    def _generator(self, stream: int, index: int) -> torch.Generator:
        # SeedSequence mixes its words: neighbouring steps and streams are independent.
        word = np.random.SeedSequence([self.seed, stream, index]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(word >> np.uint64(1)))

    def _rows(self, index: int, size: int) -> torch.Tensor:
        """Rows index*size ... of an endless run of shuffled epochs."""
        n, first = len(self), index * size
        epochs = range(first // n, (first + size - 1) // n + 1)
        order = torch.cat([torch.randperm(n, generator=self._generator(0, e)) for e in epochs])
        start = first - epochs[0] * n
        return order[start : start + size]

    def batch(self, index: int, size: int, caption_dropout: float = 0.0) -> Batch:
        rows, gen = self._rows(index, size), self._generator(1, index)
        pixels = self.pixels[rows]
        noise = torch.randn(pixels.shape, generator=gen)
        timesteps = torch.randint(0, self.num_timesteps, (size,), generator=gen)
        templates = torch.randint(0, len(TEMPLATES), (size,), generator=gen).tolist()
        kept = (torch.rand(size, generator=gen) >= caption_dropout).tolist()
        labels = self.labels[rows].tolist()
        captions = [caption(d, TEMPLATES[t]) if k else "" for d, t, k in zip(labels, templates, kept, strict=True)]
        return Batch(pixels, noise, timesteps, captions)
