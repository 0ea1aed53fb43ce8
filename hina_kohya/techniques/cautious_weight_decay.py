import dataclasses as dc

from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.numerics.masks import not_negative_


@register
@dc.dataclass(frozen=True)
class CautiousWeightDecay(Technique):
    r"""Decays only the entries that the update does not move away from zero.

    .. math:: p \leftarrow p - \eta\lambda\, [u \circ p \ge 0] \circ p

    Shapes: p, u [N, m, n]; eta, lambda [N, 1, 1].
    Source: Chen et al., arXiv:2510.12402, Algorithm 1.
    Differs: with Cautious, u is the update before its mask: a masked entry has no sign left to compare.
    Cost: no state, no reduction.
    """

    name, stage = "cautious_weight_decay", Stage.DECAY
    yields_to = ("spd",)

    def apply(self, s: Signal, state: State) -> Signal:
        share = not_negative_(s.direction * s.before).mul_(s.scalar(s.lr * s.decay))
        return s.but(param=s.param.addcmul(share, s.param, value=-1))
