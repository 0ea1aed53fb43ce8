r"""Cautious: zero the entries of the update that disagree with the gradient, rescale the rest.

.. math:: \phi = [u \odot g > 0], \quad u \leftarrow u \odot \phi / \max(\operatorname{mean} \phi, 10^{-3})

Source: Liang et al., arXiv:2411.16085, Algorithm 1, with the clamp of the authors' current code and of timm.
The inequality is strict. Decoupled decay is not masked. Entries with u = 0 or g = 0 keep their u and are no part of the
mean; with ``every_entry`` they are masked and count, as with the authors.
"""

import numpy as np

from .adamw import AdamW


def shared_out(u, g, trust, floor, every_entry=False):
    """u times 1, trust or, without an opinion, the inverse of what it is divided by."""
    phi = np.where(u * g > 0, 1.0, trust)
    concerned = np.ones(u.shape, bool) if every_entry else u * g != 0
    mean = max(phi[concerned].mean(), floor) if concerned.any() else 1.0
    return np.where(concerned, u * phi / mean, u)


def cautious(u, g, floor=1e-3, every_entry=False):
    return shared_out(u, g, 0.0, floor, every_entry)


class Cautious:
    """The mask around a moment (default AdamW; under ADOPT the sign of n is the sign of g)."""

    def __init__(self, moment=None, weight_decay=0.0, floor=1e-3, every_entry=False):
        self.moment, self.weight_decay, self.floor = moment or AdamW(), weight_decay, floor
        self.every_entry = every_entry

    def step(self, p, g, lr):
        u = self.moment.direction(g)
        if u is None:
            return p.copy()
        return p * (1 - lr * self.weight_decay) - lr * cautious(u, g, self.floor, self.every_entry)
