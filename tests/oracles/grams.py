r"""Grams: the magnitude of the adaptive update with the sign of the gradient.

.. math:: u \leftarrow |u| \odot \operatorname{sign}(g)

sign(0) = 0: no update there. Decoupled decay on top.
Source: Cao, Li and Song, arXiv:2412.17107, Algorithm 1.
Where eps sits: ours is Grams on AdamW's update, eps after the bias correction (pytorch_optimizer.Grams from 4.0 on).
The authors' grams.Grams has it inside, sqrt(v) + eps: that is ``Grams(eps_inside=True)``.
"""

import numpy as np

from .adamw import AdamW


def grams(u, g):
    return np.abs(u) * np.sign(g)


class Grams:
    """On AdamW, or on the given moment (then betas, eps and eps_inside are that moment's)."""

    def __init__(self, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, eps_inside=False, moment=None):
        self.moment, self.weight_decay = moment or AdamW(betas, eps, eps_inside=eps_inside), weight_decay

    def step(self, p, g, lr):
        u = self.moment.direction(g)
        return p.copy() if u is None else p * (1 - lr * self.weight_decay) - lr * grams(u, g)
