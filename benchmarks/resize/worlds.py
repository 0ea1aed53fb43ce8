"""Where LoRAs are trained and made smaller. `digits` and `smollm2` have the same few functions."""

from pathlib import Path
from typing import Protocol

from . import digits, smollm2


class World(Protocol):
    """TITLE, ABOUT: for the page, ABOUT with {steps} in it; STEPS: of a training

    `folder` is where base models are kept. A part is `training` or `calibration`, which share no data with each other
    or with what is evaluated.
    """

    TITLE: str
    ABOUT: str
    STEPS: int

    def missing(self) -> str | None: ...
    def identity(self, folder: Path) -> str: ...
    def rates(self, rank: int) -> tuple[float, ...]: ...
    def seconds(self, kind: str, steps: int) -> float: ...
    def train(self, folder: Path, rank: int, lr: float, steps: int, seed: int, file: Path | None) -> float: ...
    def evaluated(self, folder: Path, file: Path | None) -> float: ...
    def calibrate(self, folder: Path, file: Path, part: str, seed: int, out: Path) -> None: ...


WORLDS: dict[str, World] = {"smollm2": smollm2, "digits": digits}
