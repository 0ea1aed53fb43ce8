import dataclasses as dc

import torch

from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.numerics.masks import live
from hina_kohya.numerics.reduce import mat_dot, mat_norm


@register
@dc.dataclass(frozen=True)
class OrthoGrad(Technique):
    r"""Removes from the gradient its part along the parameter, and restores the gradient's norm.

    .. math:: g_\perp = g - \frac{\langle p, g\rangle}{\langle p, p\rangle + 10^{-30}}\, p, \quad
              g \leftarrow g_\perp \frac{\|g\|}{\|g_\perp\| + 10^{-30}}

    Shapes: p, g [N, m, n]; products and norms per matrix.
    Source: Prieto et al., arXiv:2501.04697, Algorithm 1.
    Differs: a g_perp that is only rounding (norm below 4 machine epsilon of g) becomes 0 instead of being blown up to
    the norm of g; one-element tensors, where g_perp is always 0, are left alone. Entries of p without a gradient count
    as 0: else they would get one from the others'.
    Cost: no state, four reductions.
    """

    name, stage, min_numel = "orthograd", Stage.GRADIENT, 2

    def apply(self, s: Signal, state: State) -> Signal:
        g = s.grad
        p = live(g).mul_(s.before)
        along = mat_dot(p, g) / (mat_norm(p).square_() + 1e-30)
        across = g.addcmul(along, p, value=-1)
        norm, norm_across = mat_norm(g), mat_norm(across)
        rounding_only = norm_across <= 4 * torch.finfo(g.dtype).eps * norm
        scale = (norm / (norm_across + 1e-30)).masked_fill(rounding_only, 0.0)
        return s.but(grad=across.mul_(scale))
