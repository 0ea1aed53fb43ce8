import dataclasses as dc
import math

import torch
from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.bits import pack, packed, unpack
from hina_kohya.numerics.factored import row_mean


@register
@dc.dataclass(frozen=True)
class AutomagicMask(Technique):
    r"""Raises the learning rate of an element while its gradient keeps its sign, and lowers it when the sign flips.

    .. math:: a = \operatorname{sign}(g_t)\operatorname{sign}(g_{t'}), \quad
              k \leftarrow \operatorname{clip}(k + a), \quad u \leftarrow (1 + \text{bump})^k\, u

    with t' the last step at which the element's gradient was not 0; before that there is no a, and k = 0. The power
    stays in [low, high]. `per_row`: one k a row, moved by the sign of the row's mean a. After `until` steps all k stay.

    Shapes: g, u, a [N, m, n]; k [N, m, n], or [N, m, 1].
    Source: `lr_mask` of Automagic, ostris/ai-toolkit, toolkit/optimizers/automagic.py (no paper).
    Differs: a multiplier of the group's learning rate, so that schedules act; a bump is a factor and exactly one of 254
    levels, where the original adds to an int8 share of the largest and freezes when that is large; the first step
    only records the sign, where the original takes it for agreement or flip; weight decay is left alone.
    Cost: a byte an element, or a row, and a bit an element; by row one reduction.
    """

    name, stage = "automagic_mask", Stage.STEP_SIZE
    slots = {"level": Slot.CODE, "polarity": Slot.CODE}  # level: 0 where no gradient has been yet
    bump: float = hyper(0.05, "(0, inf)", doc="relative change of the learning rate a step")
    low: float = hyper(0.1, "(0, 1]", doc="least multiplier of the learning rate")
    high: float = hyper(10.0, "[1, inf)", doc="largest multiplier of the learning rate")
    until: float = hyper(math.inf, "(0, inf]", doc="the multipliers move in a parameter's first so many steps only")
    per_row: bool = hyper(False, doc="one multiplier a row instead of one an element")

    def __post_init__(self):
        super().__post_init__()
        if math.log(self.high / self.low) > 254 * math.log1p(self.bump):
            least = (self.high / self.low) ** (1 / 254) - 1
            raise ValueError(
                f"automagic_mask.bump = {self.bump} is too small for {self.low} to {self.high} in 254 levels; "
                f"use at least {least:.3g}, or bring low and high closer"
            )

    @property
    def start(self) -> int:
        """The level of multiplier 1."""
        return 1 + math.floor(-math.log(self.low) / math.log1p(self.bump) + 1e-9)

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (m, packed(n)) if name == "polarity" else (m, 1 if self.per_row else n)

    def multiplier(self, level: Tensor) -> Tensor:
        return ((level - self.start) * level.clamp(max=1) * math.log1p(self.bump)).exp_()

    def apply(self, s: Signal, state: State) -> Signal:
        top = self.start + math.floor(math.log(self.high) / math.log1p(self.bump) + 1e-9)
        sign, last = s.grad.sign(), unpack(state["polarity"], s.grad.shape[-1])
        state["polarity"] = pack(last.lerp(sign.clamp(min=0), sign.abs()))
        agree, any_yet = sign * (2 * last - 1), sign.abs()
        if self.per_row:
            agree, any_yet = row_mean(agree).sign_(), row_mean(any_yet).sign_()
        moved = (state["level"] + agree).clamp_(1, top)
        level = (any_yet * self.start).lerp(moved, state["level"].clamp(max=1))
        if self.until < math.inf:
            level = torch.where(s.step <= self.until, level, state["level"])
        state["level"] = level
        return s.but(update=s.update * self.multiplier(level))
