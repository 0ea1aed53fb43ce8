"""In which trainings an average might help."""

import dataclasses as dc
from pathlib import Path

from .trainings import Digits, Text, Training


@dc.dataclass(frozen=True)
class Setting:
    """
    words : of the demo's command line; None: the language model
    cosine: its rate falls to zero, and does not stay
    tokens: of its text, that are trained on
    """

    steps: int
    words: str | None = None
    cosine: bool = False
    tokens: int | None = None

    def training(self, seed: int, base: Path, folder: Path) -> Training:
        """base: where the unpacked language model is kept; folder: for saved files"""
        if self.words is not None:
            return Digits(seed, self.steps, self.words, folder)
        return Text(seed, self.steps, self.cosine, self.tokens, base, folder)


DIGITS = {
    "digits, constant rate": Setting(300, "--lr_scheduler constant_with_warmup"),
    "digits, cosine": Setting(300, "--lr_scheduler cosine"),
    "12 images of each digit, constant rate": Setting(300, "--lr_scheduler constant_with_warmup --num_images 12"),
}
# Little text is seen some twenty times, as the 12 images are.
TEXT = {
    "SmolLM2, constant rate": Setting(80),
    "SmolLM2, cosine": Setting(80, cosine=True),
    "SmolLM2, 2,000 tokens, constant rate": Setting(80, tokens=2000),
}
SETTINGS = DIGITS | TEXT
FILES = 10  # that a run saves, evenly
