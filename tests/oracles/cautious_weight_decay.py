r"""Cautious weight decay: decay only the entries that the update does not already push away from zero.

.. math:: p \leftarrow p - lr\, u - lr\,\lambda\, [u \odot p \ge 0] \odot p

u and p in the mask are those before either change; the inequality is not strict (u = 0 or p = 0 counts).
Source: Chen et al., arXiv:2510.12402, Algorithm 1.
"""

from .adamw import AdamW


def decay(p, u, lr, weight_decay):
    """What is taken from p."""
    return lr * weight_decay * (u * p >= 0) * p


class CautiousWeightDecay:
    def __init__(self, moment=None, weight_decay=0.0):
        self.moment, self.weight_decay = moment or AdamW(), weight_decay

    def step(self, p, g, lr):
        u = self.moment.direction(g)
        return p.copy() if u is None else p - lr * u - decay(p, u, lr, self.weight_decay)
