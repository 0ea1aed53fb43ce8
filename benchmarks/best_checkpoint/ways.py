"""Ways to choose a step: each says a step and a training whose weights are taken, and knows no judging image."""

import dataclasses as dc
import statistics
from collections.abc import Sequence
from typing import Any

from .plan import NOISE, STOP_AFTER

Record = dict[str, Any]
LAST, HINDSIGHT = "the last file", "the best step in hindsight"


@dc.dataclass(frozen=True)
class Way:
    """
    name  : as the table says it
    curves: parts whose mean held-out loss is looked at; nothing: the last step
    taken : the part whose weights are taken
    """

    name: str
    curves: tuple[str, ...]
    taken: str = "all"


FOLDS = ("fold0", "fold1", "fold2", "fold3")
WAYS = (
    Way(LAST, ()),
    Way("a tenth held out, its last file", (), "tenth"),
    Way("a tenth held out, `keep_best`", ("tenth",), "tenth"),
    Way("a quarter held out, `keep_best`", ("fold0",), "fold0"),
    Way("a tenth says the step, then all images", ("tenth",)),
    Way("a quarter says the step, then all images", ("fold0",)),
    Way("four folds say the step, then all images", FOLDS),
    Way("fixed noise over the trained images", ("all",)),
)


@dc.dataclass(frozen=True)
class Choice:
    """
    place, step: of the lowest loss that the way looks at
    kept       : step that stop_after keeps; stopped: where it ends the run, None where it does not
    missed     : how much lower the loss of the judging images gets after the stop than at `kept`, as a share; 0 without
    trained    : steps in all, to know and to have the weights, without a stop; trainings: how many
    """

    way: Way
    place: int
    step: int
    kept: int
    kept_place: int
    stopped: int | None
    missed: float
    trained: int
    trainings: int

    @property
    def is_false_stop(self) -> bool:
        return self.missed > NOISE


def stop(losses: Sequence[float], after: int = STOP_AFTER) -> tuple[int, int | None]:
    """(place of the lowest loss before the stop, place of the stop), as `keep_best` and `stop_after` have them."""
    best = 0
    for place, loss in enumerate(losses):
        if loss < losses[best]:
            best = place
        elif place - best >= after:
            return best, place
    return best, None


def choose(way: Way, parts: dict[str, Record]) -> Choice:
    """parts: the records of one seed and one number of images."""
    taken = parts[way.taken]
    steps, judged = taken["at"], taken["judges"]
    others = [part for part in way.curves if part != way.taken]
    if not way.curves:
        last = len(steps) - 1
        return Choice(way, last, steps[-1], steps[-1], last, None, 0.0, taken["steps"], 1)
    curves = [parts[part]["chooses"] for part in way.curves]
    curve = [statistics.fmean(values) for values in zip(*curves, strict=False)]  # as far as the shortest goes
    place = curve.index(min(curve))
    kept, stopped = stop(curve)
    after = judged[stopped + 1 :] if stopped is not None else []
    missed = max([0.0, *(1 - loss / judged[kept] for loss in after)])
    trained = sum(parts[part]["steps"] for part in others) + (steps[place] if others else taken["steps"])
    return Choice(way, place, steps[place], steps[kept], kept, None if stopped is None else steps[stopped], missed,
                  trained, len(others) + 1)  # fmt: skip


def choices(parts: dict[str, Record]) -> list[Choice]:
    """By each way that has its trainings."""
    return [choose(way, parts) for way in WAYS if {*way.curves, way.taken} <= parts.keys()]


def hindsight(parts: dict[str, Record]) -> int:
    """Place of the lowest loss of the judging images, in the training on all images."""
    judged = parts["all"]["judges"]
    return judged.index(min(judged))
