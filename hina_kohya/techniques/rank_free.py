import dataclasses as dc

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.parameters.roles import Kind, Member


@register
@dc.dataclass(frozen=True)
class RankFree(Technique):
    r"""Keeps what the learning rate means for a module when its rank or its alpha is changed.

    .. math:: u \leftarrow u \sqrt{8 / r}, \quad \text{and for the factor that starts at zero } u \leftarrow u / s

    r is the rank of the pair that the factor is part of, s the module's alpha / rank. Rank and alpha 8 change nothing.

    Shapes: u [N, m, n]; r, s [N, 1, 1].
    Source: own measurement: best rates of AdamW and Muon over ranks 2 to 32 follow r^-1/2. For s nothing is measured:
    where a step does not see a gradient's scale, W = s B A goes one way from B = 0 for every s if B's steps grow by
    1 / s, since A's gradient is then the same.
    Differs: weight decay keeps the group's learning rate, as with LoRA+. Where alpha is not known, s is taken for 1.
    Cost: no state, one multiplication.
    """

    name, stage, reads_product = "rank_free", Stage.STEP_SIZE, True
    needs = "a factor of an adapter, known by its name"
    yields_to = ("lora_muon", "lora_rite")
    paired: bool = hyper(False, doc="whether it is part of a pair; set by itself")
    grows: bool = hyper(False, doc="whether it starts at zero; set by itself")

    def fit(self, member: Member) -> "RankFree | None":
        is_paired = member.role.kind is Kind.FACTOR and member.partner is not None
        grows = member.role.zero_init and member.scale is not None
        return dc.replace(self, paired=is_paired, grows=grows) if is_paired or grows else None

    def apply(self, s: Signal, state: State) -> Signal:
        factor = (8 / s.rank).sqrt() if self.paired else s.rank.new_ones(())
        return s.but(update=s.update * s.scalar(factor / s.scale if self.grows else factor))
