r"""TAM: damp the gradient that enters the momentum by how well it agrees with the momentum.

.. math::
    S_t = \frac{\langle m_{t-1}, g_t\rangle}{\|m_{t-1}\|\,\|g_t\|}\ (0 \text{ if a norm is } 0), \quad
    s_t = \gamma s_{t-1} + (1-\gamma) S_t, \quad d_t = (1 + s_t)/2

- ``TAM`` (composed form): m <- b1 m + (1-b1)(eps + d) g inside AdamW with bias correction; d = 1, eps = 0 is AdamW.
- ``AdaTAM`` (paper form): m <- b1 m + (eps + d) g, not an average; no bias correction; p <- p - lr m/(sqrt(v)+eps).
- ``TAMSGD`` (paper form): m <- b m + (eps + d) g; p <- p - lr m.

v always sees the undamped gradient. One scalar s a tensor.
Source: Malviya et al., arXiv:2412.18790, Algorithms 1 and 2 (read in two transcriptions, not in the PDF).
"""

import numpy as np

from .adamw import AdamW


def cosine(a, b):
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return np.sum(a * b) / norms if norms > 0 else 0.0


class Torque:
    """The damping factor eps + d; state s."""

    def __init__(self, gamma=0.9, eps=1e-8):
        self.gamma, self.eps, self.s = gamma, eps, 0.0

    def __call__(self, m, g):
        self.s = self.gamma * self.s + (1 - self.gamma) * cosine(m, g)
        return self.eps + (1 + self.s) / 2


class TAM:
    """Composed form around a moment (default AdamW); with ADOPT the cosine is between m and n."""

    def __init__(self, moment=None, gamma=0.9, eps=1e-8, weight_decay=0.0):
        self.moment, self.weight_decay = moment or AdamW(), weight_decay
        self.torque = Torque(gamma, eps)

    def step(self, p, g, lr):
        u = self.moment.direction(g, damping=self.torque)
        return p.copy() if u is None else p * (1 - lr * self.weight_decay) - lr * u


class AdaTAM:
    """Paper form; with ``weight_decay`` it is AdaTAMW."""

    def __init__(self, betas=(0.9, 0.999), eps=1e-8, gamma=0.9, weight_decay=0.0):
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.torque = Torque(gamma, eps)
        self.m = self.v = 0.0

    def step(self, p, g, lr):
        b1, b2 = self.betas
        self.m = b1 * self.m + self.torque(self.m, g) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        return p * (1 - lr * self.weight_decay) - lr * self.m / (np.sqrt(self.v) + self.eps)


class TAMSGD:
    """Paper form on momentum SGD."""

    def __init__(self, beta=0.9, gamma=0.9, eps=1e-8):
        self.beta, self.m = beta, 0.0
        self.torque = Torque(gamma, eps)

    def step(self, p, g, lr):
        self.m = self.beta * self.m + self.torque(self.m, g) * g
        return p - lr * self.m
