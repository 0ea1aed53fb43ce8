import dataclasses as dc

from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique


@register
@dc.dataclass(frozen=True)
class DecoupledWeightDecay(Technique):
    r"""Shrinks the parameter towards zero, apart from the gradient.

    .. math:: p \leftarrow (1 - \eta\lambda)\, p

    Shapes: p [N, m, n]; eta, lambda [N, 1, 1] of the param group; lambda is 0 for roles that do not decay.
    Source: Loshchilov & Hutter, arXiv:1711.05101, Algorithm 2.
    Differs: nothing. bf16 parameters are decayed in fp32 and rounded stochastically, so small decays act.
    Cost: no state, one multiplication.
    """

    name, stage = "weight_decay", Stage.DECAY
    yields_to = ("spd", "cautious_weight_decay")

    def apply(self, s: Signal, state: State) -> Signal:
        return s.but(param=s.param * s.scalar(1 - s.lr * s.decay))
