"""Which trainings there are, and how long.

Each seed draws its images. In a first try all seeds had the same 12, and these were alike: three of them that were held
out went on improving when other images no longer did. So that said more of the 12 than of training on 12 images.
Lengths: the loss of other images was lowest near step 120 of 12 images and near 200 of 24 there; more images cost time.
"""

import dataclasses as dc
from collections.abc import Mapping
from typing import Any

SEEDS = (201, 202, 203, 204, 205)
STEPS = {12: 160, 24: 260, 100: 200, 283: 200}  # by number of images; of the two digits, there are 283
EVERY, FOLDS, STOP_AFTER = 10, 4, 5
# A loss after a stop counts as lower if it is so by more than this share: neighbouring validations of the pilot
# differed by up to twice that.
NOISE = 0.005


@dc.dataclass(frozen=True)
class Run:
    """images: of both digits; part: 'all', 'tenth', 'fold0' ...: what is trained on, or the fold that is not"""

    images: int
    part: str
    seed: int
    steps: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Run":
        """The run that a record is of."""
        return cls(**{field.name: record[field.name] for field in dc.fields(cls)})

    @property
    def key(self) -> str:
        return f"{self.images}-{self.part}-{self.seed}-{self.steps}"


def runs(seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """What the tables need most comes first. Of the folds, the first one is the arm that holds out a quarter, too."""
    parts = [
        (12, ("all", "tenth", "fold0")),
        (24, ("all", "tenth")),
        (283, ("all", "tenth")),
        (12, ("fold1", "fold2", "fold3")),
        (100, ("all", "tenth")),
        (24, ("fold0",)),
        (24, ("fold1", "fold2", "fold3")),
    ]
    return [
        Run(images, part, seed, STEPS[images])
        for images, names in parts
        if images in STEPS
        for seed in seeds
        for part in names
    ]
