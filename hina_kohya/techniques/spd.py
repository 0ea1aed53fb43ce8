import dataclasses as dc
from collections.abc import Mapping

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_dot, mat_norm
from hina_kohya.parameters.roles import Kind, Member


@register
@dc.dataclass(frozen=True)
class SelectiveProjectionDecay(Technique):
    r"""Pulls the parameter back towards its anchor where the step went further away against the gradient's advice.

    .. math:: c = -\langle g, p - a\rangle, \quad r = \operatorname{clip}_{[0,1]}
              \frac{\|\tilde p - a\| - \|p - a\|}{\|\tilde p - a\|}, \quad
              p' = \tilde p - [c < 0]\min(\lambda r, 1)(\tilde p - a)

    with p the parameter before the step and p~ after it. The anchor a is where the parameter started: zero for the
    factors of an adapter (the authors' `pre=None`), a copy in state otherwise.

    Shapes: p, p~, g, a [N, m, n]; norms and products per matrix.
    Source: Tian, Huang & Kira, arXiv:2411.01713, Algorithm 1. lambda is not multiplied by the learning rate.
    Differs: lambda r is clamped at 1, beyond which the paper's step flips through the anchor. g is the raw gradient:
    after OrthoGrad its product with p would be rounding noise. Displaces weight decay, as in the paper.
    Cost: no state for adapters, else the anchor; three reductions.
    """

    name, stage = "spd", Stage.PARAMETER
    slots = {"anchor": Slot.ANCHOR}
    needs = "a parameter that decays (decay_roles)"
    lam: float = hyper(0.06, "[0, inf)", doc="lambda: 1 projects back to the old distance from the anchor")
    anchored: bool = hyper(False, doc="anchor at the start instead of at zero; set for whole weights by itself")

    def kept(self) -> Mapping[str, Slot]:
        return self.slots if self.anchored else {}

    def fit(self, member: Member) -> "SelectiveProjectionDecay | None":
        if not member.role.decays:
            return None
        return self if member.role.kind is Kind.FACTOR else dc.replace(self, anchored=True)

    def apply(self, s: Signal, state: State) -> Signal:
        before, after = self._deviation(s.before, state), self._deviation(s.param, state)
        fires = mat_dot(s.raw, before) > 0
        distance = mat_norm(after)
        growth = (distance - mat_norm(before)) / distance.where(distance > 0, 1.0)
        pull = growth.clamp_(0, 1).mul_(self.lam).clamp_(max=1).where(fires, 0.0)
        return s.but(param=s.param - pull * after)

    def _deviation(self, p: Tensor, state: State) -> Tensor:
        return p - state["anchor"] if self.anchored else p
