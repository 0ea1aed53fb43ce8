import dataclasses as dc

import torch
from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.reduce import mat_count
from hina_kohya.numerics.spectral import finite_or, inverse_root, pseudo_inverse
from hina_kohya.parameters.roles import Member


@register
@dc.dataclass(frozen=True)
class LoraRite(Technique):
    r"""Preconditions each factor in the orthonormal basis of its partner, so that only W = B A matters.

    For a factor L (B, or A transposed) with partner R = Q T (reduced QR), in the basis Q:

    .. math:: \bar g = g T^+, \quad P = Q_t^T Q_{t-1}, \quad
              V \leftarrow \beta_2 P V P^T + (1-\beta_2)\,\bar g^T \bar g / n, \quad
              M \leftarrow \beta_1 M P^T + (1-\beta_1)\,\bar g (V + \epsilon^2)^{-1/2}, \quad u = \eta M T^{+T}

    with the betas' bias corrections folded into the averages. Both factors read the partner as it was before the step.

    Shapes: L, g [N, rows, r]; R [N, other, r]; Q [N, other, k], k = min(other, r); M [N, rows, k]; V, P [N, k, k].
    Source: Yen et al., arXiv:2410.20625, Algorithm 1, without its clipping, skipping and escape.
    Differs: negative rounding of V's eigenvalues counts as 0; n is the number of rows that have a gradient.
    Cost: M, the partner's basis and a k x k matrix, the last two uncompressed; a QR and two r x r decompositions, which
    torch checks on the host on CUDA.
    """

    name, stage, couples, partner_shaped = "lora_rite", Stage.MOMENT, "partner", True
    slots = {"exp_avg": Slot.SIGNED, "basis": Slot.EXACT, "second": Slot.EXACT}
    betas, needs = ("beta1", "beta2"), "a pair (lora_up with its lora_down), known by name"
    beta1: float = hyper(0.9, "[0, 1)", doc="decay of the average of preconditioned gradients")
    beta2: float = hyper(0.999, "[0, 1)", doc="decay of the average of gradient products")
    eps: float = hyper(1e-6, "(0, inf)", doc="added to the root of the eigenvalues")
    side: str = hyper("", doc="which factor this is, A or B; set by itself")

    def fit(self, member: Member) -> "LoraRite | None":
        return None if member.partner is None else dc.replace(self, side=member.role.side)

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        assert partner is not None
        rows, other = (n, partner[0]) if self.side == "A" else (m, partner[1])
        k = min(other, m if self.side == "A" else n)
        return {"exp_avg": (rows, k), "basis": (other, k), "second": (k, k)}[name]

    def publish(self, param: Tensor) -> Tensor:
        return param if self.side == "A" else param.mT  # the partner, rank last

    def reach(self, step: Tensor) -> None:
        """A step of W has the learning rate's size; that of a factor goes with the other one's inverse."""

    def apply(self, s: Signal, state: State) -> Signal:
        beta1, beta2 = (s.scalar(b * (1 - b ** (s.step - 1)) / (1 - b**s.step)) for b in (self.beta1, self.beta2))
        q, t = torch.linalg.qr(s.others[:, 0])  # [N, other, k], [N, k, r]
        inverse = pseudo_inverse(finite_or(t, 0.0))  # [N, r, k]
        g = s.enter(state["exp_avg"], (s.grad.mT if self.side == "A" else s.grad) @ inverse)  # [N, rows, k]
        p = q.mT @ state["basis"]  # [N, k, k]
        rows = mat_count(g.abs().amax(dim=-1, keepdim=True))
        v = state["second"] = (p @ state["second"] @ p.mT).mul_(beta2) + (g.mT @ g).mul_((1 - beta2) / rows)
        root = inverse_root(v, self.eps)
        m = state["exp_avg"] = (state["exp_avg"] @ p.mT).mul_(beta1) + (g @ root).mul_(1 - beta1)
        state["basis"] = q
        update = (m @ inverse.mT).mul_(s.scalar(s.lr))
        return s.but(update=update.mT if self.side == "A" else update)
