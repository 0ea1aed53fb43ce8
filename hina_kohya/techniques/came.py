import dataclasses as dc
from collections.abc import Mapping

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.roles import Member
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.factored import inverse_root, means
from hina_kohya.numerics.reduce import mat_rms


@register
@dc.dataclass(frozen=True)
class Came(Technique):
    r"""Steps by the average of normalised gradients, less where that average has been a poor forecast.

    .. math:: V = \operatorname{fac}_{\beta_2}(g^2 + \epsilon_1), \quad
              u = g / \sqrt V, \; u \leftarrow u / \max(1, \operatorname{RMS}(u) / d), \quad
              m \leftarrow m + (1-\beta_1)(u - m), \quad
              S = \operatorname{fac}_{\beta_3}((u - m)^2 + \epsilon_2), \quad u = \eta\, m / \sqrt S

    where fac averages the row means R and the column means C over time and stands for R C / mean(R). Vectors keep a
    dense V and have no S.

    Shapes: g, m, u [N, m, n]; R and C together [N, 1, m + n]; the RMS per matrix.
    Source: Luo et al., arXiv:2307.02047, Algorithm 2, in the form of the authors' code (eps2 added to the residual).
    Differs: a convolution is one matrix [out, in kh kw] (the authors factor each kh x kw plane: up to 5 times the
    parameter in state). With `bias_correct_confidence` S is divided by 1 - beta3^t: without it the first step is 11
    times the learning rate, the hundredth 4 times.
    Cost: one slot and 2 (m + n) numbers a matrix; seven reductions.
    """

    name, stage = "came", Stage.MOMENT
    slots = {"exp_avg": Slot.SIGNED, "exp_avg_sq": Slot.UNSIGNED, "second": Slot.FACTOR, "instability": Slot.FACTOR}
    yields_to = ("lora_rite", "muon")
    beta1: float = hyper(0.9, "[0, 1)", doc="decay of the average of normalised gradients")
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
        unused = ("second", "instability") if self.dense else ("exp_avg_sq",)
        return {name: slot for name, slot in self.slots.items() if name not in unused}

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (1, m + n) if self.slots[name] is Slot.FACTOR else (m, n)

    def apply(self, s: Signal, state: State) -> Signal:
        rows, square = s.grad.shape[-2], s.grad.square()
        if self.dense:
            v = state["exp_avg_sq"] = _average(state["exp_avg_sq"], square, self.beta2, self.eps1)
            u = v.rsqrt().mul_(s.grad)
        else:
            v = state["second"] = _average(state["second"], means(square), self.beta2, self.eps1)
            row, column = inverse_root(v, rows)  # [N, m, 1], [N, 1, n]
            u = (s.grad * row).mul_(column)
        u = u / (mat_rms(u) / self.clip_threshold).clamp_(min=1)
        m = state["exp_avg"] = state["exp_avg"].lerp(s.enter(state["exp_avg"], u), 1 - self.beta1)
        if self.dense:
            return s.but(update=m * s.scalar(s.lr))
        residual = means((u - m).square_())
        instability = state["instability"] = _average(state["instability"], residual, self.beta3, self.eps2)
        row, column = inverse_root(instability, rows)
        lr = s.lr * (1 - self.beta3**s.step).sqrt() if self.bias_correct_confidence else s.lr  # [N, 1, 1]
        return s.but(update=(m * (row * s.scalar(lr))).mul_(column))


def _average(old: Tensor, new: Tensor, beta: float, eps: float) -> Tensor:
    return (old * beta).add_(new + eps, alpha=1 - beta)
