import dataclasses as dc
import math

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import REACH, Slot, Stage, State, Technique
from hina_kohya.numerics.pieces import elementwise


@register
@dc.dataclass(frozen=True)
class Adam(Technique):
    r"""Averages the gradient and its square, and steps by their bias-corrected ratio.

    .. math:: m \leftarrow m + (1-\beta_1)(g - m), \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
              u = \eta\,\hat m / (\sqrt{\hat v} + \epsilon)

    Shapes: g, m, v, u [N, m, n]; bias corrections [N, 1, 1], from each parameter's own step.
    Source: Kingma & Ba, arXiv:1412.6980, Algorithm 1; with `weight_decay` it is AdamW, arXiv:1711.05101.
    Differs: nothing; the order of operations is torch.optim.AdamW's, bit for bit.
    Cost: two slots, no reduction.
    """

    name, stage = "adam", Stage.MOMENT
    slots = {"exp_avg": Slot.SIGNED, "exp_avg_sq": Slot.UNSIGNED}
    betas = ("beta1", "beta2")
    yields_to = ("lora_rite", "lora_muon", "muon")
    beta1: float = hyper(0.9, "[0, 1)", doc="decay of the average of gradients")
    beta2: float = hyper(0.999, "[0, 1)", doc="decay of the average of squared gradients")
    eps: float = hyper(1e-8, "(0, inf)", doc="added to the root of the second moment")

    def reach(self, step: Tensor) -> float | None:
        """The Cauchy-Schwarz bound of |m| / sqrt(v)."""
        square = self.beta1**2
        if square >= self.beta2:
            return None
        return max(REACH, (1 - self.beta1) / math.sqrt((1 - self.beta2) * (1 - square / self.beta2)))

    def apply(self, s: Signal, state: State) -> Signal:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        g = s.enter(m, s.grad)
        m = state["exp_avg"] = m.lerp(g, 1 - self.beta1)
        v = state["exp_avg_sq"] = (v * self.beta2).addcmul_(s.grad, s.grad, value=1 - self.beta2)
        correction1, correction2 = 1 - self.beta1**s.step, 1 - self.beta2**s.step  # [N, 1, 1]
        m = s.leave(m, g, correction1)
        size, root = s.scalar(s.lr / correction1), s.scalar(correction2.sqrt())
        return s.but(update=elementwise(lambda m, v: (m * size).div_(v.sqrt().div_(root).add_(self.eps)), m, v))
