import dataclasses as dc

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.parameters.roles import Kind, Member


@register
@dc.dataclass(frozen=True)
class LoraPlus(Technique):
    r"""Gives the factor that starts at zero a larger learning rate than its partner.

    .. math:: u_B \leftarrow \lambda\, u_B

    Source: Hayou et al., arXiv:2402.12354, section 5; every LyCORIS factor that starts at zero counts as B.
    Differs: weight decay keeps the group's learning rate; the authors' code and peft, which give B a group of its own,
    let it grow by the ratio too. Left out where the param groups carry a ratio already (`loraplus_lr_ratio`).
    Cost: no state, one multiplication.
    """

    name, stage = "lora_plus", Stage.STEP_SIZE
    needs = "a factor that starts at zero (lora_up, lokr_w2, hada_w2_a, ...), known by its name"
    yields_to, splits_lr = ("kronecker_rms", "lora_rite", "lora_muon"), True
    ratio: float = hyper(16.0, "(0, inf)", doc="learning rate of B over that of A")

    def fit(self, member: Member) -> "LoraPlus | None":
        return self if member.role.kind is Kind.FACTOR and member.role.zero_init else None

    def apply(self, s: Signal, state: State) -> Signal:
        return s.but(update=s.update * self.ratio)
