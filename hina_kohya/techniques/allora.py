import dataclasses as dc

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.parameters.roles import Member


@register
@dc.dataclass(frozen=True)
class AlloraRows(Technique):
    r"""Steps the rows of B less, the larger the rows of B A have become.

    .. math:: u_{B,i} \leftarrow u_{B,i} \big/ \sqrt{\|(BA)_i\| + 1/\eta^2}, \quad \|(BA)_i\|^2 = b_i (A A^T) b_i^T

    Shapes: B, u [N, m, r]; A A^T [N, r, r]; B A is never formed.
    Source: Huang & Balestriero, arXiv:2410.09692, section 4.2.
    Differs: the paper scales gradients, which Adam's normalisation cancels, so the update is scaled here; A, whose
    exact scaling needs the gradient of B A, is left alone.
    Cost: no state; one Gram matrix and one product a pair.
    """

    name, stage, couples = "allora_rows", Stage.STEP_SIZE, "partner"
    yields_to, needs = ("lora_rite", "lora_muon"), "a pair (lora_up with its lora_down), known by name"
    eta: float = hyper(2.0, "(0, inf)", doc="largest factor, reached where B A is zero")

    def fit(self, member: Member) -> "AlloraRows | None":
        return self if member.role.side == "B" and member.partner is not None else None

    def publish(self, param: Tensor) -> Tensor:
        return param @ param.mT  # A A^T [N, r, r]

    def apply(self, s: Signal, state: State) -> Signal:
        b, gram = s.before, s.others[:, 0]
        row_norm = (b @ gram).mul_(b).sum(dim=-1, keepdim=True).clamp_(min=0).sqrt_()  # [N, m, 1]
        return s.but(update=s.update * row_norm.add_(self.eta**-2).rsqrt_())
