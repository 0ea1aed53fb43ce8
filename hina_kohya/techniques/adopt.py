import dataclasses as dc

import torch
from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import REACH, Slot, Stage, State, Technique


@register
@dc.dataclass(frozen=True)
class Adopt(Technique):
    r"""Normalises the gradient by the second moment of the steps before it, then averages the result.

    .. math:: n = \operatorname{clip}(g / \max(\sqrt{v}, \epsilon), \pm c_t), \quad m \leftarrow m + (1-\beta_1)(n - m),
              \quad u = \eta\,m, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2

    with c_t = (t - 1)^(1/4). The first call only sets v = g^2: no step, no decay.

    Shapes: g, n, m, v [N, m, n]; c [N, 1, 1].
    Source: Taniguchi et al., arXiv:2411.02853, Algorithm 2 (the version with clipping), decoupled decay.
    Differs: nothing. The clip is needed here: a LoRA's first gradient of `lora_down` is exactly 0, so v = 0.
    Cost: two slots, no reduction.
    """

    name, stage = "adopt", Stage.MOMENT
    slots = {"exp_avg": Slot.SIGNED, "exp_avg_sq": Slot.UNSIGNED}
    betas = ("beta1", "beta2")
    yields_to = ("lora_rite", "lora_muon", "muon")
    beta1: float = hyper(0.9, "[0, 1)", doc="decay of the average of normalised gradients")
    beta2: float = hyper(0.9999, "[0, 1)", doc="decay of the average of squared gradients")
    eps: float = hyper(1e-6, "(0, inf)", doc="least root of the second moment")

    def reach(self, step: Tensor) -> Tensor:
        return (step**0.25).clamp_(min=REACH)

    def apply(self, s: Signal, state: State) -> Signal:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        first = s.step == 1  # [N, 1, 1]
        clip = s.scalar((s.step - 1) ** 0.25)  # 0 at the first call, so n, m and u stay 0 there
        n = (s.grad / v.sqrt().clamp_(min=self.eps)).clamp_(-clip, clip)
        n = s.enter(m, n)
        m = state["exp_avg"] = m.lerp(n, 1 - self.beta1)
        keep = (s.step > 1) * torch.full_like(s.step, self.beta2)
        state["exp_avg_sq"] = (v * s.scalar(keep)).addcmul_(s.grad * s.scalar(1 - keep), s.grad)
        return s.but(update=s.leave(m, n, 1.0) * s.scalar(s.lr), decay=s.decay.masked_fill(first, 0.0))
