"""Which trainings there are. All of it was decided before the first of them ran, but for one pilot with 12 images.

The pilot (seed 7, no result is of it) had its lowest held-out loss near step 130. Lengths are about twice that for 12
images and more for 24, which take longer; with 100 and with all images the training has the demo's own length.
"""

import dataclasses as dc
from collections.abc import Mapping
from typing import Any

SEEDS = (201, 202, 203, 204, 205)
OF_EACH: dict[int, int | None] = {12: 6, 24: 12, 100: 50, 283: None}  # images -> of each of the two digits; None: all
STEPS = {12: 240, 24: 400, 100: 300, 283: 300}
FOLD_STEPS = {12: 180, 24: 300}  # a fold has a quarter of the images less, and is over sooner
EVERY, FOLDS, STOP_AFTER = 20, 4, 5
# A loss after a stop counts as lower if it is so by more than this share: neighbouring validations of the pilot
# differed by up to twice that.
NOISE = 0.005


@dc.dataclass(frozen=True)
class Run:
    """images: of both digits; part: 'all', 'tenth', 'fold0' ...: what is trained on, or the fold that is not"""

    images: int
    part: str
    seed: int
    schedule: str
    steps: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Run":
        """The run that a record is of."""
        return cls(**{field.name: record[field.name] for field in dc.fields(cls)})

    @property
    def of_each(self) -> int | None:
        return OF_EACH[self.images]

    @property
    def key(self) -> str:
        return f"{self.images}-{self.part}-{self.seed}-{self.schedule}-{self.steps}"


def parts(images: int) -> list[str]:
    """A fold of few images is the arm that holds out a quarter, too."""
    return ["all", "tenth", *(f"fold{number}" for number in range(FOLDS) if images in FOLD_STEPS)]


def runs(seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """Seed by seed, so that whoever stops has whole seeds; the demo's own schedule, on all images, comes last."""
    found = [
        Run(images, part, seed, "constant", FOLD_STEPS[images] if part in ("fold1", "fold2", "fold3") else steps)
        for seed in seeds
        for images, steps in STEPS.items()
        for part in parts(images)
    ]
    return found + [Run(images, "all", seed, "cosine", STEPS[images]) for seed in seeds for images in FOLD_STEPS]
