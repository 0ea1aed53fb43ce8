r"""Temporal frequency: damp what enters the momentum by how much its cosine with the momentum flickers.

.. math::
    c_t = \cos(m_{t-1}, g_t), \quad
    h = \sum_{|k|/K > \text{preserve}} |C_k|^2 / \sum_k |C_k|^2, \quad d = 1 - \text{penalty}\,h

over all w frequencies k of the last w cosines, K = floor(w / 2) the highest. h = 0 until there are w cosines since the
first step, which has no momentum to have an angle to. No paper.
A damping for ``AdamW.direction``: called with (m, g).
"""

import numpy as np

from .tam import cosine


def high_share(c, preserve=0.8):
    """h of one window; two-sided, sums written out."""
    w = len(c)
    t = np.arange(w)
    energy = [abs(np.sum(c * np.exp(-2j * np.pi * k * t / w))) ** 2 for k in range(w)]
    high = sum(e for k, e in enumerate(energy) if min(k, w - k) / (w // 2) > preserve)
    return high / sum(energy) if sum(energy) > 0 else 0.0


class Flicker:
    def __init__(self, preserve=0.8, penalty=0.05, window=16):
        self.preserve, self.penalty, self.window = preserve, penalty, window
        self.cosines = []

    def __call__(self, m, g):
        self.cosines.append(cosine(m, g))
        if len(self.cosines) <= self.window:
            return 1.0
        return 1 - self.penalty * high_share(np.array(self.cosines[-self.window :]), self.preserve)
