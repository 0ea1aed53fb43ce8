import dataclasses as dc

import torch
from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Stage, State, Technique
from hina_kohya.numerics.spectral import finite_or
from hina_kohya.parameters.roles import Member


@register
@dc.dataclass(frozen=True)
class RankPenalty(Technique):
    r"""Shrinks the singular values of W = B A after the step, the small ones most, so that W's rank falls.

    .. math:: \sigma_i \leftarrow \sigma_i f_i, \quad f_i = \max(0, 1 - \tau_i / \sigma_i), \quad
              \tau_i = \eta \cdot \text{strength} \cdot \sigma_1 (\sigma_1 / \sigma_i)^{\text{emphasis} - 1}

    by changing B alone: with A A^T = L L^T and L^T B^T B L = Q diag(sigma^2) Q^T,

    .. math:: B \leftarrow B - B\,L\,Q\,(1 - f)\,Q^T L^+

    Shapes: B [N, m, r]; A A^T, L, Q [N, r, r]. W [m, n] is never formed. eta is the param group's learning rate.
    Source: Cai, Candes & Shen, SIAM J. Optim. 2010 (singular value thresholding); the weights are those of Gu et al.,
    CVPR 2014 (weighted nuclear norm), relative to sigma_1, so that the scale of W does not matter.
    Differs: A is read as it was before the step, and kept: without A's row the gradient of B's column would be zero for
    ever. Directions that A does not have are left alone.
    Cost: no state; products with r x r matrices, two of them summed in float64, since fp32 would not see a singular
    value below 1/3000 of the largest, and two decompositions of r x r, which torch checks on the host on CUDA.
    """

    name, stage, couples = "rank_penalty", Stage.PARAMETER, "partner"
    needs = "a pair (lora_up with its lora_down) that decays, known by name"
    strength: float = hyper(0.01, "[0, inf)", doc="share of the largest singular value taken per unit of lr")
    emphasis: float = hyper(1.2, "[1, inf)", doc="how much more small singular values lose; 1: all lose the same")

    def fit(self, member: Member) -> "RankPenalty | None":
        acts = member.partner is not None and member.role.side == "B" and member.role.decays
        return self if acts else None

    def publish(self, param: Tensor) -> Tensor:
        a = param.double()
        return a @ a.mT

    def apply(self, s: Signal, state: State) -> Signal:
        tiny, eps = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).eps
        w, e = torch.linalg.eigh(finite_or(s.others[:, 0].double(), 0.0))  # ascending [N, r], [N, r, r]
        w = w.where(w > w[..., -1:] * (eps * w.shape[-1]), 0.0)
        root = w.sqrt().unsqueeze(-2)  # L = E diag(root)
        inverse = root.reciprocal().where(root > 0, 0.0)
        b = s.param.double()
        products = root * (e.mT @ (b.mT @ b) @ e) * root.mT
        squares, q = torch.linalg.eigh(finite_or(products, 0.0))
        largest = squares[..., -1:]
        relative = (squares / largest.clamp(min=tiny)).clamp_(min=0).pow_(self.emphasis / 2)
        lost = ((s.lr.squeeze(-1) * self.strength) / relative.clamp_(min=tiny)).clamp_(max=1)  # 1 - f
        lost = lost.where(largest > 0, 0.0).unsqueeze(-2)
        loss = (e * root) @ (q * lost) @ q.mT @ (e * inverse).mT
        return s.but(param=s.param - s.param @ loss.to(s.param.dtype))
