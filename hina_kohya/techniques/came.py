import dataclasses as dc
from collections.abc import Mapping

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import REACH, Slot, Stage, State, Technique
from hina_kohya.numerics.factored import averaged, inverse_root, means
from hina_kohya.numerics.reduce import mat_rms
from hina_kohya.parameters.roles import Member


@register
@dc.dataclass(frozen=True)
class Came(Technique):
    r"""Steps by the average of normalised gradients, less where that average has been a poor forecast.

    .. math:: V = \operatorname{fac}_{\beta_2}(g^2 + \epsilon_1), \quad u = g / \sqrt V, \quad
              u \leftarrow u / \max(1, \operatorname{RMS}(u) / d), \quad m \leftarrow m + (1-\beta_1)(u - m), \quad
              S = \operatorname{fac}_{\beta_3}((u - m)^2 + \epsilon_2), \quad u = \eta\, m / \sqrt S

    where fac is R C / mean(R), with row means R and column means C averaged over time. Vectors: dense V, no S.

    Shapes: g, m, u [N, m, n]; R and C together [N, 1, m + n]; the RMS per matrix, of entries that have a gradient.
    Source: Luo et al., arXiv:2307.02047, Algorithm 2, in the form of the authors' code (eps2 added to the residual).
    Differs: a convolution is one matrix [out, in kh kw] (theirs: each kh x kw plane, up to 5 times the parameter in
    state). With `bias_correct_confidence` S is divided by 1 - beta3^t, else step 1 is of 11 lr, step 100 of 4 lr.
    Cost: one slot and 2 (m + n) numbers a matrix; eight reductions.
    """

    name, stage, stretches = "came", Stage.MOMENT, True
    slots = {"exp_avg": Slot.SIGNED, "exp_avg_sq": Slot.UNSIGNED, "second": Slot.FACTOR, "instability": Slot.FACTOR}
    betas = ("beta1", "beta2", "beta3")
    yields_to = ("lora_rite", "lora_muon", "muon")
    beta1: float = hyper(0.9, "[0, 1)", doc="decay of the average of normalised gradients")
    beta1_decay: float = hyper(1.0, "(0, 1]", doc="factor on beta1 a step: Kingma & Ba, arXiv:1412.6980, section 4")
    beta1_floor: float = hyper(0.4, "[0, 1)", doc="what that leaves of it at least")
    beta2: float = hyper(0.999, "[0, 1)", doc="decay of the average of squared gradients")
    beta3: float = hyper(0.9999, "[0, 1)", doc="decay of the average of squared residuals")
    eps1: float = hyper(1e-30, "(0, inf)", doc="added to the squared gradient")
    eps2: float = hyper(1e-16, "(0, inf)", doc="added to the squared residual")
    clip_threshold: float = hyper(1.0, "(0, inf]", doc="largest RMS of a normalised gradient")
    bias_correct_confidence: bool = hyper(False, doc="correct the residual's average for its start at 0")
    dense: bool = hyper(False, doc="a dense second moment and no confidence; set for vectors by itself")

    def fit(self, member: Member) -> "Came":
        return self if len(member.shape) > 1 else dc.replace(self, dense=True)

    def kept(self) -> Mapping[str, Slot]:
        used = ("exp_avg", "exp_avg_sq") if self.dense else ("exp_avg", "second", "instability")
        return {name: self.slots[name] for name in used}

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (1, m + n) if self.slots[name] is Slot.FACTOR else (m, n)

    def reach(self, step: Tensor) -> float | None:
        return REACH if self.bias_correct_confidence else None

    def apply(self, s: Signal, state: State) -> Signal:
        m, rows, square = state["exp_avg"], s.grad.shape[-2], s.grad.square()
        if self.dense:
            v = state["exp_avg_sq"] = averaged(state["exp_avg_sq"], square, self.beta2, self.eps1)
            u = v.rsqrt().mul_(s.grad)
        else:
            v = state["second"] = averaged(state["second"], means(square), self.beta2, self.eps1)
            row, column = inverse_root(v, rows)  # [N, m, 1], [N, 1, n]
            u = (s.grad * row).mul_(column)
        u = u / (mat_rms(u) / self.clip_threshold).clamp_(min=1)
        g, beta1 = s.enter(m, u), self.beta1
        if self.beta1_decay < 1:
            beta1 = s.scalar((self.beta1_decay ** (s.step - 1) * beta1).clamp_(min=min(beta1, self.beta1_floor)))
        m = state["exp_avg"] = m.lerp(g, 1 - beta1)
        if self.dense:
            return s.but(update=s.leave(m, g, 1.0) * s.scalar(s.lr))
        wobble = state["instability"] = averaged(state["instability"], means((u - m).square_()), self.beta3, self.eps2)
        row, column = inverse_root(wobble, rows)
        lr = s.lr * (1 - self.beta3**s.step).sqrt() if self.bias_correct_confidence else s.lr  # [N, 1, 1]
        return s.but(update=(s.leave(m, g, 1.0) * (row * s.scalar(lr))).mul_(column))
