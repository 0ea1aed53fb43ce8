import dataclasses as dc

import torch

from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.numerics.reduce import mat_sum


@register
@dc.dataclass(frozen=True)
class AdaptiveGradientRegularization(Technique):
    r"""Shrinks each entry of the gradient by its share of the matrix's absolute sum.

    .. math:: \alpha = |g| / \textstyle\sum |g|, \quad g \leftarrow (1 - \alpha) \circ g

    Shapes: g, alpha [N, m, n]; the sum is per matrix.
    Source: Jiang et al., arXiv:2407.16944, Algorithm 1.
    Differs: one-element tensors are left alone (alpha = 1 would delete their gradient), an all-zero gradient stays 0.
    Cost: no state, one reduction. The effect is O(1 / numel): visible on LoKr's small factors, nil on large matrices.
    """

    name, stage, min_numel = "agr", Stage.GRADIENT, 2

    def apply(self, s: Signal, state: State) -> Signal:
        magnitude = s.grad.abs()
        total = mat_sum(magnitude).clamp_(min=torch.finfo(magnitude.dtype).tiny)
        return s.but(grad=magnitude.mul_(-total.reciprocal_()).add_(1).mul_(s.grad))
