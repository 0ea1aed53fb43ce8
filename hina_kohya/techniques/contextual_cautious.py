import dataclasses as dc

import torch

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics import masks
from hina_kohya.numerics.factored import live_means
from hina_kohya.numerics.reduce import mat_cosine, mat_mean


@register
@dc.dataclass(frozen=True)
class ContextualCautious(Technique):
    r"""Shrinks update entries that disagree with the gradient, the less the more gradients have agreed with each other.

    .. math:: c = \tfrac1K \textstyle\sum_k \cos(z, M_k), \quad M_k \leftarrow M_k + (z - M_k) / s_k, \quad
              \rho \leftarrow \rho + r\,(\max(c, 0) - \rho), \\
              \kappa = \max([u \circ g > 0], \rho), \quad u \leftarrow u \circ \kappa / \max(\operatorname{mean} \kappa,
              \text{floor})

    z are the means of g's rows and columns, a sketch of it. Where c falls below (1 - edge_threshold) mu, mu > 0 its
    average over the steps before, rho counts as 0 in this step. Then, as wherever rho = 0, the update is Cautious'.

    Shapes: u, g, kappa [N, m, n]; z [N, 1, m + n]; M [N, K, m + n]; c, mu, rho [N, 1, 1].
    Source: Cautious is Liang et al., arXiv:2411.16085; its strictness by context is this project's.
    Differs: rows and columns without a gradient, and entries without one, are in no mean.
    Cost: K (m + n) + 2 numbers a matrix; 3 K + 8 reductions, of which six are of the whole matrix.
    """

    name, stage, stretches, yields_to = "contextual_cautious", Stage.UPDATE, True, ("lora_muon",)
    slots = {"context": Slot.SIGNED, "usual": Slot.EXACT, "trust": Slot.EXACT}  # M, mu, rho
    scales: tuple[int, ...] = hyper((1, 5, 20, 100), doc="time scales of the momenta in steps, whole and rising")
    window: float = hyper(50, "[1, inf)", doc="steps over which the usual agreement is averaged")
    edge_threshold: float = hyper(0.9, "[0, 1]", doc="a fall of the agreement by this share means full caution")
    rate: float = hyper(0.1, "[0, 1]", doc="how fast caution follows the agreement; 0 is Cautious")
    floor: float = hyper(1e-3, "(0, 1]", doc="lower clamp of the kept fraction")

    def __post_init__(self):
        super().__post_init__()
        scales = self.scales if isinstance(self.scales, tuple) else ()
        whole = all(isinstance(scale, int) and not isinstance(scale, bool) and scale >= 1 for scale in scales)
        if not scales or not whole or list(scales) != sorted(set(scales)):
            raise ValueError(
                f"contextual_cautious.scales = {self.scales!r} must be whole numbers of steps, one or more, rising, "
                "such as (1, 5, 20, 100)"
            )

    @property
    def memory(self) -> float:
        return 1 - 1 / self.scales[-1]

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (len(self.scales), m + n) if name == "context" else (1, 1)

    def apply(self, s: Signal, state: State) -> Signal:
        sketch, usual = live_means(s.grad), state["usual"]
        momenta = state["context"].split(1, dim=-2)
        c = mat_mean(torch.cat([mat_cosine(sketch, momentum) for momentum in momenta], dim=-2))  # [N, 1, 1]
        moved = [m.lerp(sketch, 1 / scale) for m, scale in zip(momenta, self.scales, strict=True)]
        state["context"] = torch.cat(moved, dim=-2)
        state["usual"] = usual.lerp(c, 1 / self.window)
        trust = state["trust"] = state["trust"].lerp(c.clamp(min=0), self.rate)
        edge = (usual > 0) & (c < (1 - self.edge_threshold) * usual)
        return s.but(update=masks.cautious(s.update, s.grad, self.floor, trust.masked_fill(edge, 0.0)))
