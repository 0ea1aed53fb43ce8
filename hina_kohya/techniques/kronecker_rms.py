import dataclasses as dc

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.numerics.reduce import mat_rms
from hina_kohya.parameters.roles import Member


@register
@dc.dataclass(frozen=True)
class KroneckerRms(Technique):
    r"""Divides the step of a Kronecker factor by the size of the others, so that each moves W = A (x) B by about lr.

    .. math:: u_A \leftarrow u_A / \max(\sqrt{r}\, \textstyle\prod \operatorname{RMS}(\text{others}), \text{floor})

    Shapes: u [N, m, n]; RMS [N, K, 1, 1] of up to K other factors; r is the inner rank of W's factors.
    Source: ||dA (x) B|| = ||dA|| ||B|| and an Adam step has RMS lr; the preconditioner of arXiv:2402.02347 for a
    Kronecker product, moved from the gradient, where Adam would cancel it, to the step.
    Differs: LyCORIS's alpha / dim is not known to an optimizer and left out.
    Cost: no state, one reduction. Displaces the LoRA+ ratio; invariant to (s A, B / s).
    """

    name, stage, couples, reads_product = "kronecker_rms", Stage.STEP_SIZE, "cofactors", True
    needs = "the factors of a LoKr, known by name"
    floor: float = hyper(0.1, "(0, inf)", doc="least divisor: bounds the step while a factor is near its zero start")

    def fit(self, member: Member) -> "KroneckerRms | None":
        return self if member.cofactors else None

    def publish(self, param: Tensor) -> Tensor:
        return mat_rms(param)

    def apply(self, s: Signal, state: State) -> Signal:
        size = s.others.prod(dim=1) * s.scalar(s.cofactor_rank.sqrt())  # [N, 1, 1]
        return s.but(update=s.update * size.clamp_(min=self.floor).reciprocal_())
