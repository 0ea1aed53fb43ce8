import dataclasses as dc

from torch import Tensor

from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.gauge import partners_root
from hina_kohya.numerics.neurons import even_out_factor
from hina_kohya.numerics.newton_schulz import orthogonalise
from hina_kohya.parameters.roles import Kind, Member


@register
@dc.dataclass(frozen=True)
class LoraMuon(Technique):
    r"""Steps both factors so that W = B A moves as Muon would move it, however W is split into them.

    .. math:: \delta = \rho\,\eta \max(1, s^{-1/2}) \sqrt{\max(m, n)}, \quad \tau = \kappa\,\delta_{peak}, \quad
              L_A, L_B = \text{roots of } A A^T, B^T B \text{, damped by } \tau \text{ (numerics.gauge)}

    .. math:: u_B = \tfrac{\delta}{2} \mathrm{NS}(w_B L_A^{-T}) L_A^{-1}, \quad
              u_A = \tfrac{\delta}{2} L_B^{-T} \mathrm{NS}(L_B^{-1} w_A)

    with Muon's averages w of each factor's gradient. NS(...) is evened out as NorMuon does, neurons being along r.
    eta is as large as AdamW's, which makes up for half of a small s = alpha / r; eta_peak is what schedules multiply.

    Shapes: A, u_A [N, r, n]; B, u_B [N, m, r]; W [m, n]; the roots [N, r, r].
    Source: Cesista et al., arXiv:2606.12921; NorMuon: Li et al., arXiv:2510.05491, Algorithm 1.
    Differs: the damping, tau^2 times the other factor's inverse, keeps the step independent of the split where the
    paper leaves it open; Cholesky roots stand for symmetric ones, since NS(X Q) = NS(X) Q; each factor decays by half,
    so that W does by eta lambda.
    Cost: one slot, a number per neuron; Muon's products, three Cholesky factors and inverses of r x r.
    """

    name, stage, couples, reads_product, decay_share = "lora_muon", Stage.MOMENT, "partner", True, 0.5
    slots = {"exp_avg": Slot.SIGNED, "neurons": Slot.FACTOR}
    betas, needs = ("beta",), "a pair (lora_up with its lora_down) of a LoRA, known by name, of no more rank than sides"
    yields_to, splits_lr = ("lora_rite",), True
    beta: float = hyper(0.9, "[0, 1)", doc="decay of the average of gradients")
    beta2: float = hyper(0.95, "[0, 1)", doc="decay of the neurons' average of squares")
    eps: float = hyper(1e-8, "(0, inf)", doc="added to its root")
    rms: float = hyper(0.8, "(0, inf)", doc="rho: size of the step over the learning rate, from AdamW's best rates")
    kappa: float = hyper(5.0, "(0, inf)", doc="damping over the largest step")
    alpha_root: bool = hyper(False, doc="eta over the root of alpha / r, where that is below 1")
    rank_free: bool = hyper(False, doc="eta times sqrt(8 / r) over alpha / r, as rank_free does for other steps")
    side: str = hyper("", doc="which factor this is, A or B; set by itself")
    grows: bool = hyper(False, doc="whether it is the one that starts at zero; set by itself")

    def fit(self, member: Member) -> "LoraMuon | None":
        is_pair = member.partner is not None and member.role.kind is Kind.FACTOR
        if not is_pair or member.role.algo in ("loha", "lokr") or member.rank > min(member.outer):
            return None  # W is no multiple of B A, or does not have directions in which factors would grow without end
        return dc.replace(self, side=member.role.side, grows=member.grows)

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (1, n if self.side == "A" else m) if name == "neurons" else (m, n)

    def publish(self, param: Tensor) -> Tensor:
        return param.mT @ param if self.side == "A" else param @ param.mT  # the partner's Gram matrix

    def reach(self, step: Tensor) -> None:
        """A step of W has the learning rate's size; that of a factor goes with the other one's inverse."""

    def rate_factor(self, s: Signal) -> Tensor | float:
        of_alpha = s.alpha_factor if self.alpha_root else 1.0
        return (8 / s.rank).sqrt() / s.scale if self.rank_free else of_alpha

    def apply(self, s: Signal, state: State) -> Signal:
        down = self.side == "A"
        g = s.enter(state["exp_avg"], s.grad)
        m = state["exp_avg"] = state["exp_avg"].lerp(g, 1 - self.beta)
        w = s.leave(g.lerp(m, self.beta), g, 1 - self.beta ** (s.step + 1))
        unit = self.rms * s.longest.sqrt() * self.rate_factor(s)
        own = s.before @ s.before.mT if down else s.before.mT @ s.before
        root = partners_root(own, s.others[:, 0], s.scalar(self.kappa * unit * s.peak), self.grows)
        o, size = orthogonalise(root @ w if down else w @ root.mT), s.scalar(s.lr * unit / 2)
        o, state["neurons"] = even_out_factor(o, s.grad, size, state["neurons"], self.beta2, self.eps, wide=down)
        return s.but(update=root.mT @ o if down else o @ root)
