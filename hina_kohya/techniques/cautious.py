import dataclasses as dc

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.numerics import masks


@register
@dc.dataclass(frozen=True)
class Cautious(Technique):
    r"""Zeroes the entries of the update that disagree with the gradient in sign, and rescales the rest.

    .. math:: \phi = [u \circ g > 0], \quad u \leftarrow u \circ \phi / \max(\operatorname{mean} \phi, \text{floor})

    Shapes: u, g, phi [N, m, n]; the mean is per matrix, never over the bucket.
    Source: Liang et al., arXiv:2411.16085, Algorithm 1 (the authors' code clamps the mean at 1e-3; so do we).
    Differs: g is the gradient after the gradient stage. Entries with u = 0 or g = 0, which cannot disagree, are not
    part of the mean and keep their u: dead rows, tokens that were not looked up, ranks that were dropped.
    Cost: no state, two reductions. Displaces Grams, after which there is nothing left that disagrees.
    """

    name, stage = "cautious", Stage.UPDATE
    yields_to, stretches = ("contextual_cautious", "lora_muon"), True
    floor: float = hyper(1e-3, "(0, 1]", doc="lower clamp of the kept fraction")

    def apply(self, s: Signal, state: State) -> Signal:
        return s.but(update=masks.cautious(s.update, s.grad, self.floor))
