"""Which trainings there are, and how long.

A pilot with 12 images (seed 7, no result is of it) had its lowest held-out loss near step 130. Lengths were decided by
it and by what they cost: with the first seed half done those of 12 and 24 images were cut, for time alone, from 240 and
400 steps. With more images it is the demo's own.
The rate is constant, so the first steps of a longer run are the shorter run.
"""

import dataclasses as dc
from collections.abc import Mapping
from typing import Any

SEEDS = (201, 202, 203, 204, 205)
OF_EACH: dict[int, int | None] = {12: 6, 24: 12, 100: 50, 283: None}  # images -> of each of the two digits; None: all
STEPS = {12: 180, 24: 300, 100: 300, 283: 300}
FOLDED = (12, 24)  # images that are trained on in folds, too
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
        return f"{self.images}-{self.part}-{self.seed}-{self.steps}"


def runs(seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """Folds that only say a step come last. The first one is the arm that holds out a quarter, too."""
    first = [
        Run(images, part, seed, steps)
        for images, steps in STEPS.items()
        for seed in seeds
        for part in ("all", "tenth", "fold0")
        if part != "fold0" or images in FOLDED
    ]
    more = [
        Run(images, f"fold{number}", seed, STEPS[images])
        for images in FOLDED
        for seed in seeds
        for number in range(1, FOLDS)
    ]
    return first + more
