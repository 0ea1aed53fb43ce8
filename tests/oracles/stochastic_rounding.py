r"""Stochastic rounding to bfloat16: round up with the probability of the part that is cut off.

.. math:: \operatorname{bits}(x_{32}) + U\{0..65535\}, \text{ then } \&\ \mathtt{0xFFFF0000}

The expectation is x for both signs (the bits are sign and magnitude, so "up" is away from zero).
Source: Zamirai et al., arXiv:2010.06192, section 4; the bit form is common to OneTrainer, adv_optm and others.
Differs: infinities and NaN pass unchanged (adding noise would turn some NaN into -0). A finite value above the largest
bfloat16 may still round to infinity, as it must.
"""

import numpy as np


def stochastic_round(x, noise):
    """float32 ``x`` and integers 0..65535 of its shape -> float32 that bfloat16 holds exactly."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + noise.astype(np.uint32)) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x).astype(np.float32)
