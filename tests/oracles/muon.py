r"""Muon: step by the orthogonalised momentum, each matrix as a whole, with the RMS of an Adam step.

.. math::
    M_t &= \mu M_{t-1} + g_t, \quad N_t = \mu M_t + g_t \text{ (Nesterov) or } M_t \\
    O_t &= \mathrm{NS}(N_t): \quad X_0 = N_t / \|N_t\|_F, \quad X \leftarrow a X + b (X X^T) X + c (X X^T)^2 X \\
    W &\leftarrow (1 - lr\,\lambda) W - lr\, \rho \sqrt{\max(m, n)}\; O_t

with five rounds and (a, b, c) = (3.4445, -4.7750, 2.0315). ``svd`` gives the iteration by decomposition, U f(S) V^T,
and ``polar`` what it aims at, U V^T; f(s) is within ``BAND`` for s in ``RANGE``.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon (the sum of gradients, the iteration); Liu et al.,
arXiv:2502.16982, section 2.2 (rho = 0.2, decoupled decay). An all-zero N gives O = 0.
"""

import numpy as np

A, B, C = 3.4445, -4.7750, 2.0315
BAND, RANGE = (0.68, 1.21), (0.0016, 1.0)


def newton_schulz(x, rounds=5):
    norm = np.sqrt(np.sum(x * x))
    if norm == 0:
        return np.zeros_like(x)
    x = x / norm
    for _ in range(rounds):
        square = x @ x.T
        x = A * x + B * square @ x + C * square @ square @ x
    return x


def on_singular_value(s, rounds=5):
    for _ in range(rounds):
        s = A * s + B * s**3 + C * s**5
    return s


def svd(x, rounds=5):
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    return (u * on_singular_value(s / np.linalg.norm(s), rounds)) @ vt


def polar(x):
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


def extent(o, g, along=None):
    """Which neurons (along the shorter side, or the axis given) have a gradient, and how many of their entries move."""
    if along is None:
        along = 0 if o.shape[0] < o.shape[1] else 1
    lines = (o * o).sum(axis=1 - along)
    return np.abs(g).max(axis=along) > 0, max(1, int((lines > 1e-6 * lines.max()).sum()))


class Muon:
    """``orthogonal`` is any of the three functions above; ``rms=None`` leaves O as it is (for comparisons)."""

    def __init__(self, beta=0.9, nesterov=True, rms=0.2, rounds=5, weight_decay=0.0, orthogonal=newton_schulz):
        self.beta, self.nesterov, self.rms, self.rounds = beta, nesterov, rms, rounds
        self.weight_decay, self.orthogonal = weight_decay, orthogonal
        self.m = 0.0

    def direction(self, g, damping=None):
        """[m, n]; a convolution is taken as [out, in * kh * kw]."""
        shape, g = g.shape, g.reshape(g.shape[0], -1)
        g = g if damping is None else damping(self.m, g) * g
        self.m = self.beta * self.m + g
        n = self.beta * self.m + g if self.nesterov else self.m
        o = self.orthogonal(n) if self.orthogonal is polar else self.orthogonal(n, self.rounds)
        return (o if self.rms is None else self.rms * self.scale(o, g) * o).reshape(shape)

    def scale(self, o, g):
        """sqrt(max(m, n)) of the neurons with a gradient and the lines across them that move; 0 without a gradient."""
        neurons, width = extent(o, g)
        return np.sqrt(max(neurons.sum(), width)) if neurons.any() else 0.0

    def step(self, p, g, lr):
        return p * (1 - lr * self.weight_decay) - lr * self.direction(g)
