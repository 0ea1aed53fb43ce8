r"""Kronecker RMS rule: divide the rate of one Kronecker factor by the RMS of what it is multiplied with.

.. math::
    W = s\; w_1 \otimes w_2: \quad & lr_1 = lr / \max(s \operatorname{RMS}(w_2), f), \quad
    lr_2 = lr / \max(s \operatorname{RMS}(w_1), f) \\
    w_2 = a\, b\ (\text{rank } r): \quad & lr_a = lr / \max(s \sqrt r \operatorname{RMS}(b) \operatorname{RMS}(w_1), f),
    \quad lr_b = lr / \max(s \sqrt r \operatorname{RMS}(a) \operatorname{RMS}(w_1), f)

An Adam step has RMS about lr, so each factor then moves W by RMS lr, and the path of W does not depend on how its
size is shared: (c w1, w2/c) gives the same W, as does (c a, b/c). RMS(X) = ||X||_F / sqrt(numel).
s is the module scale (alpha / dim), f bounds every multiplier by 1/f: LyCORIS starts with w2 (or b) zero.
Source: own derivation, TECHNIQUES.md section 9; no paper and no packaged code.
"""

import numpy as np

from .adamw import AdamW
from .pair import Pair


def rms(x):
    return np.linalg.norm(x) / np.sqrt(x.size)


def full(w1, w2, scale=1.0, floor=1e-3):
    """(k1, k2) for two full factors."""
    return 1 / max(scale * rms(w2), floor), 1 / max(scale * rms(w1), floor)


def low_rank(w1, a, b, scale=1.0, floor=1e-3):
    """(k1, ka, kb) for w2 = a b with a [o, r], b [r, i]; RMS(w2) is that of the product."""
    r = a.shape[1]
    mate = scale * np.sqrt(r) * rms(w1)
    return 1 / max(scale * rms(a @ b), floor), 1 / max(mate * rms(b), floor), 1 / max(mate * rms(a), floor)


class Kronecker(Pair):
    """step(w1, w2, g1, g2, lr) -> (w1, w2)."""

    def __init__(self, scale=1.0, floor=1e-3, **adamw):
        super().__init__(**adamw)
        self.scale, self.floor = scale, floor

    def multipliers(self, A, B):
        return full(A, B, self.scale, self.floor)


class KroneckerLowRank:
    """step((w1, a, b), (g1, ga, gb), lr) -> (w1, a, b)."""

    def __init__(self, scale=1.0, floor=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.scale, self.floor, self.weight_decay = scale, floor, weight_decay
        self.moments = [AdamW(betas, eps) for _ in range(3)]

    def step(self, ws, gs, lr):
        ks = low_rank(*ws, self.scale, self.floor)
        keep = 1 - lr * self.weight_decay
        return tuple(
            w * keep - lr * k * moment.direction(g) for w, g, k, moment in zip(ws, gs, ks, self.moments, strict=True)
        )
