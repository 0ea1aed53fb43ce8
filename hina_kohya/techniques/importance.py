import dataclasses as dc
import math

import torch
from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Pool, Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_count, mat_sum


@register
@dc.dataclass(frozen=True)
class Importance(Technique):
    r"""Steps parameters on which the loss depends more than on others of their param group by more.

    .. math:: I_i \leftarrow \beta I_i + (1-\beta) \operatorname{mean}|p \circ g|, \quad
              \ell_i = \operatorname{mean}_{j \sim i} \log \hat I_j, \quad
              y_i = b \tanh\!\big(s\,(\ell_i - \bar\ell) / b\big), \quad u_i \leftarrow e^{y_i - \bar y} u_i

    with s the strength, b = log(bound), j over i and its ties, bars the means over the param group and the hat the bias
    correction. The multipliers have geometric mean 1 within a group: the learning rate is moved, never lowered or
    raised. They are those of the state before the step. A matrix without signal (I = 0) gets 1 and does not count.

    Shapes: p, g, u [N, m, n]; I, y [N, 1, 1], as [G, M] for G groups of up to M matrices, ties [G, M, K].
    Source: |p g| as sensitivity, Molchanov et al., arXiv:1611.06440; its average, Zhang et al., arXiv:2206.12562
    (PLATON); a negative strength favours the least sensitive, Liang et al., arXiv:2202.02664 (SAGE).
    Differs: the papers prune with it, or scale single entries; here matrices, redistributing. The mean is over entries
    that have a gradient. Unchanged if all gradients of a group are scaled, or p by c and g by 1 / c.
    Cost: four bytes a matrix; one elementwise pass and reduction, and a few operations on one number a matrix.
    """

    name, stage, pools = "importance", Stage.STEP_SIZE, "average"
    slots = {"average": Slot.EXACT}
    beta: float = hyper(0.95, "[0, 1)", doc="decay of the average of sensitivities")
    strength: float = hyper(
        1.0, "[-4, 4]", doc="power of the relative importance; negative favours the least important"
    )
    bound: float = hyper(2.0, "(1, inf)", doc="largest multiplier, and 1 / bound the least, before they are centred")

    def relative(self, pool: Pool) -> tuple[Tensor, Tensor]:
        """Log of the importance relative to the group, ties averaged, and which matrices have any; both [G, M]."""
        average = pool.values[..., 0]
        known = pool.there & average.isfinite() & (average > 0)
        logs = torch.where(known, average, 1.0).log_()
        shared = pool.tied(logs).sum(dim=-1) / pool.tied(known.to(logs)).sum(dim=-1).clamp_(min=1)
        return _centred(shared, known), known

    def pool(self, pool: Pool) -> Tensor:
        relative, known = self.relative(pool)
        b = math.log(self.bound)
        return _centred((relative * (self.strength / b)).tanh_().mul_(b), known).exp_()

    def apply(self, s: Signal, state: State) -> Signal:
        sensitivity, average = mat_sum((s.before * s.raw).abs_()) / mat_count(s.raw), state["average"]
        rate = s.scalar((1 - self.beta) / (1 - self.beta**s.step))  # keeps the average bias-corrected
        state["average"] = average + (sensitivity - average) * rate
        return s.but(update=s.update * s.scalar(s.others))


def _centred(x: Tensor, known: Tensor) -> Tensor:
    """Less the mean over the known ones of a group; 0 for the others."""
    mean = (x * known).sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True).clamp_(min=1)
    return (x - mean) * known
