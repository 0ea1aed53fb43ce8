import dataclasses as dc

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_cosine


@register
@dc.dataclass(frozen=True)
class TorqueAwareMomentum(Technique):
    r"""Damps what enters the momentum when it points away from the momentum.

    .. math:: s \leftarrow \gamma s + (1-\gamma)\cos(m, g), \quad d = (1 + s) / 2, \quad
              m \leftarrow \beta_1 m + (1-\beta_1)(\epsilon + d)\, g

    Shapes: m, g [N, m, n]; s, d [N, 1, 1]: one cosine a matrix, never one an entry.
    Source: Malviya et al., arXiv:2412.18790, AdaTAM.
    Differs: the paper's momentum is a sum; here it stays the average of the MOMENT technique, bias-corrected, so that
    d = 1 is exactly that technique and learning rates carry over. The second moment sees the undamped gradient.
    With ADOPT the cosine is between its momentum and its normalised gradient.
    Cost: one number a matrix, three reductions.
    """

    name, stage = "tam", Stage.TORQUE
    slots = {"torque": Slot.EXACT}
    beta: float = hyper(0.9, "[0, 1)", doc="decay of the average of cosines")
    eps: float = hyper(1e-8, "[0, inf)", doc="least share of the gradient that enters")

    def enter(self, s: Signal, momentum: Tensor, incoming: Tensor, state: State) -> Tensor:
        torque = state["torque"].lerp(mat_cosine(momentum, incoming), 1 - self.beta)
        state["torque"] = torque
        return incoming * ((1 + torque) / 2 + self.eps)
