import dataclasses as dc

import torch
from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_cosine, mat_sum


@register
@dc.dataclass(frozen=True)
class TemporalFrequency(Technique):
    r"""Damps what enters the momentum while its angle to the momentum flips from step to step.

    .. math:: c_t = \cos(m_{t-1}, g_t), \quad C = \mathcal F(c_{t-w+1}, \dots, c_t), \quad
              h = \sum_{f > \text{preserve}} |C_f|^2 \Big/ \sum_f |C_f|^2, \quad g \leftarrow g\,(1 - \text{penalty}\,h)

    F is the Fourier transform over time, f the frequency over the highest one, that of a sign that changes every step.
    h = 1 where c alternates, 0 where it is constant, zero, or the window not yet full.

    Shapes: g, m [N, m, n]; c [N, 1, window]; C [N, 1, window // 2 + 1]; h [N, 1, 1].
    Source: the share of high frequencies in a periodogram; no paper.
    Differs: the fork transforms over the entries of a matrix, whose order means nothing; here it may change.
    Cost: `window` numbers a matrix, uncompressed; three reductions and a short transform. Invariant to the scale of g.
    """

    name, stage = "temporal_frequency", Stage.TORQUE
    slots = {"cosines": Slot.EXACT}
    preserve: float = hyper(0.8, "[0, 1)", doc="frequencies up to this one are left alone; 1 is the highest")
    penalty: float = hyper(0.05, "[0, 1]", doc="share that is taken away where all of the energy is above")
    window: int = hyper(16, "[4, 256]", doc="steps that are looked back on")

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (1, int(self.window))

    def enter(self, s: Signal, momentum: Tensor, incoming: Tensor, state: State) -> Tensor:
        window, highest = int(self.window), int(self.window) // 2
        cosines = torch.cat([state["cosines"][..., 1:], mat_cosine(momentum, incoming)], dim=-1)
        state["cosines"] = cosines
        energy = torch.view_as_real(torch.fft.rfft(cosines)).square_().sum(dim=-1)  # [N, 1, window // 2 + 1]
        energy[..., 1 : (window + 1) // 2].mul_(2)  # each stands for its negative frequency too
        first = next(k for k in range(highest + 1) if k / highest > self.preserve)
        tiny = torch.finfo(energy.dtype).tiny
        share = mat_sum(energy[..., first:]) / mat_sum(energy).clamp_(min=tiny)
        # The first step has no momentum, so its cosine says nothing and is waited out too.
        return incoming * (1 - self.penalty * share.where(s.step > window, 0.0))
