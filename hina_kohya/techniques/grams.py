import dataclasses as dc

from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique


@register
@dc.dataclass(frozen=True)
class Grams(Technique):
    r"""Takes the update's magnitude and the current gradient's sign.

    .. math:: u \leftarrow |u| \circ \operatorname{sign}(g)

    Shapes: u, g [N, m, n].
    Source: Cao, Li & Song, arXiv:2412.17107, Algorithm 1.
    Differs: epsilon stands where Adam has it, after the bias correction of v (the authors' code adds it before).
    Cost: no state, no reduction.
    """

    name, stage = "grams", Stage.UPDATE
    yields_to = ("cautious", "contextual_cautious", "lora_muon")

    def apply(self, s: Signal, state: State) -> Signal:
        update = s.update.abs().mul_(s.grad.sign())
        return s.but(update=update, direction=update)
