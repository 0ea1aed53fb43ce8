r"""LoRA-Muon: Muon's step of W = B A, however W is written as a product.

.. math::
    \delta &= \rho\, lr \sqrt{\max(m, n)}, \quad \tau = \kappa\, \rho\, lr_{peak} \sqrt{\max(m, n)} \\
    S_A &= A A^T + \epsilon_A I, \quad S_B = B^T B, \quad
    \tilde S_B = S_B + \tau^2 S_A^{-1} + \epsilon_B I, \quad \tilde S_A = S_A + \tau^2 \tilde S_B^{-1} \\
    B &\leftarrow B - \tfrac{\delta}{2}\, \mathrm{E}[\mathrm{NS}(w_B \tilde S_A^{-1/2})]\, \tilde S_A^{-1/2} \\
    A &\leftarrow A - \tfrac{\delta}{2}\, \tilde S_B^{-1/2}\, \mathrm{E}[\mathrm{NS}(\tilde S_B^{-1/2} w_A)]

with w Muon's Nesterov average and E NorMuon's division by the running size of each neuron (along the rank), after which
the norm is that of an orthonormal matrix again. The roots are symmetric here, by eigenvalues; any others with the same
square give the same step, since NS(X Q) = NS(X) Q for orthogonal Q. epsilon is 1e-6 of the mean eigenvalue.

Where A starts at zero and B does not, the two change places. Weight decay takes half of lr lambda from each factor.
``rank_free`` multiplies lr and its peak by sqrt(8 / r) / s, s being alpha / r; ``alpha_root`` by max(1, s^{-1/2}).

Source: Cesista et al., arXiv:2606.12921, with a damping of our own that changes with the basis as S_B does; Li et al.,
arXiv:2510.05491.
"""

import numpy as np

from .muon import extent, newton_schulz


def ridged(gram):
    return gram + 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))


def inverse_root(gram):
    w, e = np.linalg.eigh(gram)
    return (e / np.sqrt(w)) @ e.T


class Factor:
    """Averages of one factor; the neurons lie along the rank."""

    def __init__(self, beta, beta2, eps):
        self.beta, self.beta2, self.eps = beta, beta2, eps
        self.m = self.v = 0.0

    def average(self, g):
        self.m = self.beta * self.m + (1 - self.beta) * g
        return self.beta * self.m + (1 - self.beta) * g

    def evened(self, o, g, axis):
        live, width = extent(o, g, axis)
        keep = np.expand_dims(np.where(live, self.beta2, 1.0), axis)
        self.v = keep * self.v + (1 - keep) * np.sum(o * o, axis=axis, keepdims=True) / width
        hat = o / (np.sqrt(self.v) + self.eps)
        norm = np.linalg.norm(hat)
        return hat if norm == 0 else hat * np.sqrt(min(live.sum(), width)) / norm


class LoRAMuon:
    def __init__(
        self, beta=0.9, beta2=0.95, eps=1e-8, rms=0.8, kappa=5.0, weight_decay=0.0, rank_free=None, alpha_root=None
    ):
        self.rms, self.kappa, self.weight_decay = rms, kappa, weight_decay
        self.scale, self.root_of = rank_free, alpha_root
        self.down, self.up = (Factor(beta, beta2, eps) for _ in range(2))

    def step(self, A, B, gA, gB, lr, peak, zero="B"):
        unit = self.rms * np.sqrt(max(len(B), A.shape[1]))
        if self.scale is not None:
            unit *= np.sqrt(8 / len(A)) / self.scale
        elif self.root_of is not None:
            unit *= max(1, self.root_of**-0.5)
        first, second = (A @ A.T, B.T @ B) if zero == "B" else (B.T @ B, A @ A.T)
        first, square = ridged(first), (self.kappa * unit * peak) ** 2
        second = ridged(second + square * np.linalg.inv(first))
        roots = inverse_root(first + square * np.linalg.inv(second)), inverse_root(second)
        root_a, root_b = roots if zero == "B" else roots[::-1]
        uB = self.up.evened(newton_schulz(self.up.average(gB) @ root_a), gB, 1) @ root_a
        uA = root_b @ self.down.evened(newton_schulz(root_b @ self.down.average(gA)), gA, 0)
        keep = 1 - lr * self.weight_decay / 2
        return A * keep - lr * unit / 2 * uA, B * keep - lr * unit / 2 * uB
