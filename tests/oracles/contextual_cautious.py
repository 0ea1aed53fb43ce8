r"""Cautious by context: what disagrees with the gradient is held back, the less the more gradients have agreed.

.. math::
    z &= \text{row means and column means of } g, \quad
        c = \operatorname{mean}_k \cos(z, M_k), \quad M_k \leftarrow M_k + (z - M_k) / s_k \\
    \rho &\leftarrow \rho + r (\max(c, 0) - \rho), \quad \rho' = 0 \text{ if } \mu > 0 \text{ and } c < (1 - e) \mu,
        \text{ else } \rho, \quad \mu \leftarrow \mu + (c - \mu) / w \\
    k &= \phi + (1 - \phi) \rho', \quad \phi = [u \odot g > 0], \quad
        u \leftarrow u \odot k / \max(\operatorname{mean} k, 10^{-3})

c is taken with the momenta before this step, mu in the condition too; a cosine with zero is 0. Vectors are one row.
Means of rows are over columns that have a gradient, and of columns over such rows; that of k as in ``cautious``.
Source: this project's; rho = 0 is Liang et al., arXiv:2411.16085, Algorithm 1 (see ``cautious``).
"""

import numpy as np

from .adamw import AdamW
from .cautious import shared_out
from .tam import cosine


class ContextualCautious:
    """``edges`` counts how often the agreement fell."""

    def __init__(
        self,
        scales=(1, 5, 20, 100),
        window=50,
        edge_threshold=0.9,
        rate=0.1,
        floor=1e-3,
        moment=None,
        weight_decay=0.0,
    ):
        self.scales, self.window, self.edge_threshold, self.rate, self.floor = (
            scales,
            window,
            edge_threshold,
            rate,
            floor,
        )
        self.moment, self.weight_decay = moment or AdamW(), weight_decay
        self.context, self.mu, self.rho, self.edges = [0.0] * len(scales), 0.0, 0.0, 0

    def direction(self, g):
        u = self.moment.direction(g)
        matrix = g.reshape(len(g), -1) if g.ndim > 1 else g.reshape(1, -1)
        rows, columns = (max(1, np.count_nonzero(np.abs(matrix).max(axis=axis))) for axis in (1, 0))
        z = np.concatenate([matrix.sum(axis=1) / columns, matrix.sum(axis=0) / rows])
        c = np.mean([cosine(z, m) for m in self.context])
        self.context = [m + (z - m) / s for m, s in zip(self.context, self.scales, strict=True)]
        self.rho += self.rate * (max(c, 0.0) - self.rho)
        edge = self.mu > 0 and c < (1 - self.edge_threshold) * self.mu
        self.mu += (c - self.mu) / self.window
        self.edges += edge
        return shared_out(u, g, 0.0 if edge else self.rho, self.floor)

    def step(self, p, g, lr):
        return p * (1 - lr * self.weight_decay) - lr * self.direction(g)
