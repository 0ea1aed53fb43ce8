import dataclasses as dc
from collections.abc import Mapping

from hina_kohya.core.bucket import matrix_shape
from hina_kohya.core.hyper import hyper
from hina_kohya.core.registry import register
from hina_kohya.core.signal import Signal
from hina_kohya.core.technique import Slot, Stage, State, Technique
from hina_kohya.numerics.neurons import even_out, scaled
from hina_kohya.numerics.newton_schulz import orthogonalise
from hina_kohya.parameters.lookup import is_looked_up
from hina_kohya.parameters.roles import Kind, Member


@register
@dc.dataclass(frozen=True)
class Muon(Technique):
    r"""Steps by the orthogonalised momentum: all its singular values are made about equal.

    .. math:: m \leftarrow m + (1-\mu)(g - m), \quad w = g + \mu(m - g), \quad
              u = \eta\,\rho \sqrt{\max(\text{rows}, \text{columns})}\; \mathrm{NS}(w)

    NS is five rounds of a quintic Newton-Schulz iteration from w / ||w||. NS(w) has an RMS of about 1 / sqrt(max(rows,
    columns)), so u has rho eta whatever the shape; rho = 0.2 is what Adam's has on noise, sqrt((1 - b1) / (1 + b1)).
    So the learning rate, decay and the rules for partners (LoRA+, Kronecker) keep the meaning that they have with Adam.

    With ``normuon`` each neuron's part is divided by the root of its running mean square, and u has an RMS of rho eta:

    .. math:: v \leftarrow v + (1-\beta_2)(\overline{\mathrm{NS}(w)^2} - v), \quad
              o = \mathrm{NS}(w) / (\sqrt v + \epsilon), \quad u = \eta\,\rho\; o / \mathrm{RMS}(o)

    Shapes: g, m, w, u, o [N, m, n], convolutions as [out, in * kh * kw]; k = min(m, n); v [N, 1, max(m, n)], a neuron
    being a row of a tall matrix, a column of a wide one.
    Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon; the scale: Liu et al., arXiv:2502.16982, section 2.2;
    NorMuon: Li et al., arXiv:2510.05491, Algorithm 1.
    Differs: no epsilon under ||w||, so gradients of any size count; m is the average of gradients, not their sum; mu is
    0.9 by our benchmark, 0.95 with the authors. NorMuon's neurons are always rows: of lora_down, whose rows NS makes
    alike, that changes nothing. Rows, columns and neurons without a gradient are no part of a mean or the scale, and
    without any gradient there is no step. Vectors, rank 1, what is no linear map (scales, norms, biases, rotations),
    embeddings and heads by name, and matrices with k above `largest` are left to the other MOMENT technique.
    Cost: one slot, and max(m, n) numbers with NorMuon; ten products with k x k matrices, so 20 k operations an entry.
    """

    name, stage, stretches = "muon", Stage.MOMENT, True
    slots = {"exp_avg": Slot.SIGNED, "neurons": Slot.FACTOR}
    betas, needs = ("beta",), "a matrix that is no embedding or head, of rank 2 to muon.largest"
    yields_to = ("lora_rite", "lora_muon")
    beta: float = hyper(0.9, "[0, 1)", doc="mu: decay of the average of gradients")
    nesterov: bool = hyper(True, doc="let the newest gradient count more: w above, else w = m")
    rms: float = hyper(0.2, "(0, inf)", doc="rho: RMS of the step over the learning rate")
    rounds: int = hyper(5, "[1, 20]", doc="rounds of Newton-Schulz")
    largest: float = hyper(float("inf"), "[1, inf]", doc="k above which a matrix is left to the other technique")
    normuon: bool = hyper(False, doc="even out the neurons' shares of the step")
    beta2: float = hyper(0.95, "[0, 1)", doc="NorMuon: decay of the average of squares")
    eps: float = hyper(1e-8, "(0, inf)", doc="NorMuon: added to its root")

    def fit(self, member: Member) -> "Muon | None":
        linear = member.role.kind in (Kind.FACTOR, Kind.DENSE, Kind.REGULAR) and not is_looked_up(member)
        return self if linear and 1 < min(matrix_shape(member.shape)) <= self.largest else None

    def kept(self) -> Mapping[str, Slot]:
        return {name: slot for name, slot in self.slots.items() if self.normuon or name != "neurons"}

    def slot_shape(self, name: str, m: int, n: int, partner: tuple[int, int] | None) -> tuple[int, int]:
        return (1, max(m, n)) if name == "neurons" else (m, n)

    def apply(self, s: Signal, state: State) -> Signal:
        m = state["exp_avg"]
        g = s.enter(m, s.grad)
        m = state["exp_avg"] = m.lerp(g, 1 - self.beta)
        w = g.lerp(m, self.beta) if self.nesterov else m
        w = s.leave(w, g, 1 - self.beta ** (s.step + self.nesterov))
        o = orthogonalise(w, int(self.rounds))
        size = s.scalar(s.lr * self.rms)
        if not self.normuon:
            return s.but(update=scaled(o, s.grad, size))
        update, state["neurons"] = even_out(o, s.grad, size, state["neurons"], self.beta2, self.eps)
        return s.but(update=update)
