import dataclasses as dc
import math

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_cosine


@register
@dc.dataclass(frozen=True)
class AdaTam(Technique):
    r"""Sums gradients damped by their torque against the sum, and steps by sum over root of the second moment.

    .. math:: s \leftarrow \gamma s + (1-\gamma)\cos(m, g), \quad m \leftarrow \beta_1 m + (\epsilon + (1+s)/2)\, g,
              \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad u = \eta\, m / (\sqrt{v} + \epsilon)

    Shapes: g, m, v [N, m, n]; s [N, 1, 1].
    Source: Malviya et al., arXiv:2412.18790, AdaTAM as in the paper; `tam` is the form that keeps AdamW's rates.
    Differs: nothing. m is a sum and nothing is bias-corrected, so a step is about 10 (first 100 steps: 15 to 45) times
    AdamW's at the same learning rate.
    Cost: two slots, one number a matrix, three reductions.
    """

    name, stage = "adatam", Stage.MOMENT
    slots = {"exp_avg": Slot.SIGNED, "exp_avg_sq": Slot.UNSIGNED, "torque": Slot.EXACT}
    betas = ("beta1", "beta2")
    yields_to = ("lora_rite", "lora_muon", "muon")
    beta1: float = hyper(0.9, "[0, 1)", doc="decay of the sum of gradients")
    beta2: float = hyper(0.999, "[0, 1)", doc="decay of the average of squared gradients")
    gamma: float = hyper(0.9, "[0, 1)", doc="decay of the average of cosines")
    eps: float = hyper(1e-8, "(0, inf)", doc="added to the damping and to the root of the second moment")

    def reach(self, step: Tensor) -> float | None:
        """The Cauchy-Schwarz bound of |m| / sqrt(v)."""
        square = self.beta1**2
        return None if square >= self.beta2 else 1 / math.sqrt((1 - self.beta2) * (1 - square / self.beta2))

    def apply(self, s: Signal, state: State) -> Signal:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        torque = state["torque"] = state["torque"].lerp(mat_cosine(m, s.grad), 1 - self.gamma)
        g = s.grad * ((1 + torque) / 2 + self.eps)
        m = state["exp_avg"] = m * self.beta1 + g
        v = state["exp_avg_sq"] = (v * self.beta2).addcmul_(s.grad, s.grad, value=1 - self.beta2)
        m = s.leave(m, g, 1 / (1 - self.beta1))
        return s.but(update=(m * s.scalar(s.lr)).div_(v.sqrt().add_(self.eps)))
