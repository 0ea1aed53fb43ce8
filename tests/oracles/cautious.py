r"""Cautious: zero the entries of the update that disagree with the gradient, rescale the rest.

.. math:: \phi = [u \odot g > 0], \quad u \leftarrow u \odot \phi / \max(\operatorname{mean} \phi, 10^{-3})

Source: Liang et al., arXiv:2411.16085, Algorithm 1, with the clamp of the authors' current code and of timm.
The inequality is strict. Decoupled decay is not masked.
"""

import numpy as np

from .adamw import AdamW


def cautious(u, g, floor=1e-3):
    phi = (u * g > 0).astype(np.float64)
    return u * phi / max(phi.mean(), floor)


class Cautious:
    """The mask around a moment (default AdamW; under ADOPT the sign of n is the sign of g)."""

    def __init__(self, moment=None, weight_decay=0.0, floor=1e-3):
        self.moment, self.weight_decay, self.floor = moment or AdamW(), weight_decay, floor

    def step(self, p, g, lr):
        u = self.moment.direction(g)
        return p.copy() if u is None else p * (1 - lr * self.weight_decay) - lr * cautious(u, g, self.floor)
