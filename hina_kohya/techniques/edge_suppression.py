import dataclasses as dc

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_norm


@register
@dc.dataclass(frozen=True)
class EdgeSuppression(Technique):
    r"""Shrinks a gradient that is a spike, far larger than its matrix's gradients usually are, and counts it.

    .. math:: \ell = \gamma_{t-1} / (1 - \text{threshold}), \quad
              g \leftarrow g\,(1 - \text{penalty}\,(1 - \ell / \|g\|)) \text{ where } \|g\| > \ell, \quad
              \gamma_t = \gamma_{t-1} + \tfrac{1-\beta}{1-\beta^n}(\|g\| - \gamma_{t-1})

    with the last norm that of the shrunk g, and n the gradients that entered the average. A zero does not enter: a
    factor whose partner starts at zero gets zeros first, and those say nothing.

    Shapes: g [N, m, n]; norm, average, count of gradients and of spikes [N, 1, 1].
    Source: penalty 1 is AdaGC, Wang et al., arXiv:2502.11034, with lambda_rel = 1 / (1 - threshold).
    Differs: less than the whole excess can be taken. The average is bias-corrected: while gradients grow evenly from
    zero it stays above half of them. In the warm-up gradients are only recorded; the authors clip them globally and
    keep the least norm.
    Cost: three numbers a matrix, one reduction. Invariant to the scale of g.
    """

    name, stage = "edge_suppression", Stage.GRADIENT
    slots = {"norm": Slot.EXACT, "seen": Slot.EXACT, "spikes": Slot.EXACT}
    threshold: float = hyper(0.6, "[0, 1)", doc="share of a spike's norm beyond the average; 0.6: 2.5 times it")
    penalty: float = hyper(0.1, "[0, 1]", doc="share of the excess that is taken away; 1 clips at the limit")
    beta: float = hyper(0.98, "[0, 1)", doc="decay of the average of norms")
    warmup: int = hyper(20, "[0, inf)", doc="gradients that are only recorded")

    def apply(self, s: Signal, state: State) -> Signal:
        average, seen = state["norm"], state["seen"]
        norm = mat_norm(s.grad)
        says = norm > 0
        limit = average / (1 - self.threshold)
        spike = says & (norm > limit) & (seen >= max(self.warmup, 1))
        shrink = (1 - self.penalty * (1 - limit / norm)).where(spike, 1.0)
        state["spikes"] = state["spikes"] + spike
        seen = state["seen"] = seen + says
        weight = s.scalar((1 - self.beta) / (1 - self.beta ** seen.double()))  # [N, 1, 1]
        state["norm"] = average.lerp(norm * shrink, weight).where(says, average)
        return s.but(grad=s.grad * shrink)
