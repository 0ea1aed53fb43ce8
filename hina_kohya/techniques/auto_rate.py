import dataclasses as dc

import torch
from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Pool, Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_dot
from hina_kohya.parameters.roles import Kind, Member


@register
@dc.dataclass(frozen=True)
class AutoRate(Technique):
    r"""Finds by what the learning rate has to be multiplied: one number d for all parameters, as Prodigy does.

    .. math:: w = d^2 \eta / d_0, \quad q \leftarrow \beta q + (1 - \beta)\, w \langle g, x_0 - x \rangle, \quad
              s \leftarrow \beta s + (1 - \beta)\, w\, g

    .. math:: d \leftarrow \max\Big(d,\ c\, \sum_i q_i \big/ \sum_i \rho_i |\langle s_i, u_i \rangle| \Big)

    u_i is the step that this matrix just made, for a learning rate of one; eta its group's rate as the schedule has it,
    1.0 as a rule; rho_i that over the largest group's. A factor that does not start at zero takes d and adds nothing.

    Shapes: g, x, s, u [N, m, n]; q [N, 1, 1]; d is one number.
    Source: Mishchenko and Defazio, arXiv:2306.06101, Algorithm 4.
    Differs: any step stands for Adam's, so that <s, u> stands for the norm that it is the steepest descent of (for
    Adam's it is the paper's, the sum of |s|); averages of the step's own are not weighted by d; the sums are over what
    starts at zero, of which x_0 need not be kept, or was trained before.
    Cost: a sum in two bytes (and a copy of x_0 where that is not zero) for what adds to it, 16 bytes a matrix.
    """

    name, stage, pools, follows, reads_start = "auto_rate", Stage.RATE, "numbers", True, True
    slots = {"sum": Slot.SUM, "start": Slot.ANCHOR, "numbers": Slot.EXACT}
    d0: float = hyper(3e-4, "(0, inf)", doc="d at the start, and its least value")
    coef: float = hyper(1.0, "(0, inf)", doc="c: what is found is multiplied by it")
    beta: float = hyper(0.9995, "[0, 1)", doc="decay of both sums; the paper's root of Adam's beta2")
    adds: bool = hyper(True, doc="whether this matrix adds to the sums; set by itself")
    from_zero: bool = hyper(False, doc="whether it started at zero; set by itself")

    def fit(self, member: Member) -> "AutoRate":
        is_factor = member.role.kind in (Kind.FACTOR, Kind.EMBEDDING)
        return dc.replace(self, adds=not is_factor or member.role.zero_init, from_zero=member.starts_at_zero)

    def kept(self) -> dict[str, Slot]:
        unused = {"start"} if self.from_zero and self.adds else set() if self.adds else {"sum", "start"}
        return {name: slot for name, slot in self.slots.items() if name not in unused}

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (1, 4) if name == "numbers" else (m, n)  # d, q, <s, u>, eta

    def pooler(self) -> "AutoRate":
        return dc.replace(self, adds=True, from_zero=False)

    def pool(self, pool: Pool) -> Tensor:
        values = torch.where(pool.values.isfinite().all(dim=-1, keepdim=True), pool.values, 0.0)
        d, q, size, eta = (values * pool.there.unsqueeze(-1)).unbind(-1)
        bound = self.coef * q.sum() * eta.amax() / (size * eta).sum()  # NaN before the first step: fmax takes the other
        return torch.fmax(d.amax().clamp(min=self.d0), bound).expand(pool.there.shape)

    def apply(self, s: Signal, state: State) -> Signal:
        return s.but(lr=s.lr * s.others, peak=None if s.peak is None else s.peak * s.others)

    def follow(self, s: Signal, state: State) -> None:
        d, q, size, eta = state["numbers"].unbind(-1)
        d, moves = s.scalar(s.others).squeeze(-1), (s.lr > 0).squeeze(-1)
        if self.adds:
            weight, rate = s.scalar(s.lr * s.others / self.d0), (1 - self.beta) * s.scalar(s.lr > 0)
            displacement = -s.before if self.from_zero else state["start"].to(s.before.dtype) - s.before
            state["sum"] = state["sum"].lerp(weight * s.raw, rate)
            q = q.lerp((weight * mat_dot(s.raw, displacement)).squeeze(-1), rate.squeeze(-1))
            slope = mat_dot(state["sum"], s.update).abs() / s.scalar(s.lr)
            size = torch.where(moves, slope.squeeze(-1), size)
            eta = torch.where(moves, s.scalar(s.lr / s.others).squeeze(-1), eta)
        state["numbers"] = torch.stack([d, q, size, eta], dim=-1)
