import dataclasses as dc

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique


@register
@dc.dataclass(frozen=True)
class DualMomentum(Technique):
    r"""Adds a second, long-term momentum to the one that the update is made of.

    .. math:: m_2 \leftarrow m_2 + (1-\beta_3)(g - m_2), \quad \hat m \leftarrow \hat m + \alpha\, m_2

    with g what enters the momentum m, and m^ what the update is made of: m over its bias correction, if it has one.

    Shapes: g, m, m_2 [N, m, n].
    Source: Pagliardini et al., arXiv:2409.03137, Algorithm 1 (AdEMAMix), without its warm-ups of alpha and beta3.
    Differs: with Adam nothing. With ADOPT and CAME g is their normalised gradient; with AdaTAM m^ is its sum over
    1 / (1 - beta1), the average; with Muon the mix is what is made orthogonal. Damped by TAM, g enters both damped.
    LoRA-RITE turns its momentum with the basis at every step and has none.
    Cost: one slot, no reduction.
    """

    name, stage = "dual_momentum", Stage.TORQUE
    slots = {"long_avg": Slot.SIGNED}
    yields_to = ("lora_rite",)
    long_beta: float = hyper(0.99, "[0, 1)", doc="beta3: decay of the long-term average")
    alpha: float = hyper(1.0, "[0, inf)", doc="weight of the long-term average; the other's is 1")

    @property
    def memory(self) -> float:
        return self.long_beta

    def leave(self, s: Signal, momentum: Tensor, incoming: Tensor, weight: Tensor | float, state: State) -> Tensor:
        long = state["long_avg"] = state["long_avg"].lerp(incoming, 1 - self.long_beta)
        share = self.alpha * weight
        return momentum + long * (s.scalar(share) if isinstance(share, Tensor) else share)
