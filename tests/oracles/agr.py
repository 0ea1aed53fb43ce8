r"""AGR: shrink each gradient entry by its share of the tensor's absolute sum.

.. math:: \alpha = |g| / \textstyle\sum |g|, \quad g \leftarrow (1 - \alpha) \odot g

Source: Jiang et al., arXiv:2407.16944, Algorithm 1 (AGR.py: the sum is over one tensor).
Differs: one-element tensors and all-zero gradients pass unchanged (the official code gives 0 and NaN).
"""

import numpy as np

from .adamw import AdamW


def alpha(g):
    return np.abs(g) / np.sum(np.abs(g))


def agr(g):
    if g.size == 1 or not np.any(g):
        return g.copy()
    return g - alpha(g) * g


class AGR:
    """AGR before a moment (default AdamW without decay)."""

    def __init__(self, moment=None):
        self.moment = moment or AdamW()

    def step(self, p, g, lr):
        return self.moment.step(p, agr(g), lr)
