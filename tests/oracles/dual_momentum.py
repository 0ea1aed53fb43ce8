r"""AdEMAMix: the numerator of Adam is the short average, bias-corrected, plus alpha times a long one, as it is.

.. math::
    m_1 &= b_1 m_1 + (1-b_1) g, \quad m_2 = b_3 m_2 + (1-b_3) g, \quad v = b_2 v + (1-b_2) g^2 \\
    p &\leftarrow (1 - lr \lambda) p - lr\, (\hat m_1 + \alpha m_2) / (\sqrt{\hat v} + \epsilon)

Source: Pagliardini et al., arXiv:2409.03137, Algorithm 1, without the schedules of alpha and beta3.
The others put the same second average beside the momentum of another method, as our chain does: no paper has them.
"""

import numpy as np

from .adopt import ADOPT
from .came import CAME, factored
from .muon import Muon
from .tam import AdaTAM


class AdEMAMix:
    """``damping`` is TAM's, on what enters both averages."""

    def __init__(self, betas=(0.9, 0.999, 0.99), alpha=1.0, eps=1e-8, weight_decay=0.0, damping=None):
        self.betas, self.alpha, self.eps, self.weight_decay, self.damping = betas, alpha, eps, weight_decay, damping
        self.m1 = self.m2 = self.v = 0.0
        self.t = 0

    def direction(self, g):
        b1, b2, b3 = self.betas
        self.t += 1
        d = 1.0 if self.damping is None else self.damping(self.m1, g)
        self.m1 = b1 * self.m1 + (1 - b1) * d * g
        self.m2 = b3 * self.m2 + (1 - b3) * d * g
        self.v = b2 * self.v + (1 - b2) * g**2
        v_hat = self.v / (1 - b2**self.t)
        return (self.m1 / (1 - b1**self.t) + self.alpha * self.m2) / (np.sqrt(v_hat) + self.eps)

    def step(self, p, g, lr):
        return p * (1 - lr * self.weight_decay) - lr * self.direction(g)


class _Long:
    """Sees what enters the momentum of a method, by its ``damping``; changes nothing there."""

    long_beta, alpha, m2 = 0.99, 1.0, 0.0

    def see(self, _m, incoming):
        self.m2 = self.long_beta * self.m2 + (1 - self.long_beta) * incoming
        return 1.0


class AdoptMix(_Long, ADOPT):
    def direction(self, g, damping=None):
        u = super().direction(g, self.see)
        return None if u is None else u + self.alpha * self.m2


class CameMix(_Long, CAME):
    def direction(self, g, damping=None):
        super().direction(g, self.see)
        mixed = self.m + self.alpha * self.m2
        if g.ndim < 2:
            return mixed
        return (mixed / np.sqrt(factored(self.r_res, self.c_res))).reshape(g.shape)


class AdaTamMix(_Long, AdaTAM):
    """m is a sum with weights b1^k, so it counts as m (1 - b1)."""

    def step(self, p, g, lr):
        b1, b2 = self.betas
        d = self.torque(self.m, g)
        self.see(self.m, d * g)
        self.m = b1 * self.m + d * g
        self.v = b2 * self.v + (1 - b2) * g**2
        average = self.m * (1 - b1) + self.alpha * self.m2
        return p * (1 - lr * self.weight_decay) - lr * average / (1 - b1) / (np.sqrt(self.v) + self.eps)


class MuonMix(_Long, Muon):
    """The sum of the bias-corrected average (with Nesterov's look ahead) and the long one is orthogonalised."""

    t = 0

    def direction(self, g, damping=None):
        shape, g = g.shape, g.reshape(len(g), -1)
        self.t += 1
        self.see(self.m, g)
        self.m = self.beta * self.m + (1 - self.beta) * g
        n, t = (self.beta * self.m + (1 - self.beta) * g, self.t + 1) if self.nesterov else (self.m, self.t)
        o = self.orthogonal(n / (1 - self.beta**t) + self.alpha * self.m2, self.rounds)
        return (self.rms * np.sqrt(max(o.shape)) * o).reshape(shape)
