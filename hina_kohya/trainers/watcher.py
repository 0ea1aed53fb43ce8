"""What looks on while a step is taken: which entries masks keep, and what weight decay takes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.bucket import Bucket
from hina_kohya.core.chain import Chain, run
from hina_kohya.core.signal import Signal
from hina_kohya.core.stepping import Run
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.numerics.reduce import mat_norm, mat_sum

_MASKS = ("cautious", "contextual_cautious")
KEPT, DECAY = "cautious_kept", "decay"


class Watcher:
    """An optimizer's watcher: looks at masks and decay, matrix by matrix, without another step.

    shares: (what, numbers of the param groups [N], [2, N]: the part and the whole). `KEPT`: entries that a mask kept,
    and those that it judged; `DECAY`: squared norms of what decay took, and of the parameters
    """

    def __init__(self) -> None:
        self.shares: list[tuple[str, np.ndarray, Tensor]] = []

    def __call__(self, bucket: Bucket, rows: Sequence[int], runner: Run) -> Run:
        if runner is not run:  # a compiled chain rounds otherwise than this one would
            return runner
        groups = bucket.groups[list(rows)]
        starts = iter(range(0, len(rows), bucket.chunk_rows))

        def watched(chain: Chain, *rest: Any) -> Any:
            start = next(starts)
            chunk = groups[start : start + bucket.chunk_rows]
            note = lambda what, parts: self.shares.append((what, chunk, parts))  # noqa: E731
            return runner(tuple(_watched(each, note) for each in chain), *rest)

        return watched


def _watched(technique: Technique, note: Callable[[str, Tensor], None]) -> Any:
    is_watched = technique.name in _MASKS or technique.stage is Stage.DECAY
    return _Watched(technique, note) if is_watched else technique


class _Watched:
    """A technique that is looked at where it acts; in everything else the technique itself."""

    def __init__(self, technique: Technique, note: Callable[[str, Tensor], None]):
        self._technique, self._note = technique, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._technique, name)

    def apply(self, s: Signal, state: State) -> Signal:
        after = self._technique.apply(s, state)
        if self._technique.stage is Stage.DECAY:
            what, parts = DECAY, [mat_norm(s.param - after.param).square_(), mat_norm(s.param).square_()]
        else:
            sign = (s.update * s.grad).sign_()  # 0 where an entry can neither agree nor disagree, which no mask judges
            judged = mat_norm(sign).square_()
            what, parts = KEPT, [judged.lerp(mat_sum(sign), 0.5), judged]
        is_finite = mat_norm(s.raw).isfinite()  # others are not stepped
        self._note(what, torch.stack(parts).where(is_finite, 0.0).view(2, -1))
        return after


def shares_by_group(shares: list[tuple[str, np.ndarray, np.ndarray]], groups: Sequence[str]) -> dict[str, float]:
    """Scalars by tag. shares: of `Watcher`; groups: what the trainer calls the param groups"""
    totals = {what: np.zeros((len(groups), 2)) for what in (KEPT, DECAY)}
    for what, numbers, parts in shares:
        np.add.at(totals[what], numbers, parts.T)
    kept, decayed = (list(zip(groups, totals[what], strict=True)) for what in (KEPT, DECAY))
    return {f"hina/{KEPT}/{name}": float(part / whole) for name, (part, whole) in kept if whole} | {
        f"hina/{DECAY}/{name}": math.sqrt(part / whole) for name, (part, whole) in decayed if part
    }
