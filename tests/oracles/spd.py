r"""SPD: where a step drifts further from the anchor against the gradient's will, pull it back.

.. math::
    \tilde p &= p - lr\, u \quad\text{(no weight decay)}, \qquad c = -\langle g, p - a\rangle \\
    r &= \operatorname{clip}\big((\|\tilde p - a\| - \|p - a\|) / \|\tilde p - a\|,\ 0,\ 1\big) \\
    p &\leftarrow \tilde p - \min(\lambda r, 1)\,(\tilde p - a) \text{ if } c < 0, \text{ else } \tilde p

g is the raw gradient and p the parameter before the step; a is 0 for LoRA. lambda is not multiplied by lr.
Source: Tian, Huang and Kira, arXiv:2411.01713, Algorithm 1 (adamSPD.py).
Differs: lambda r is clamped at 1 (above, the step would pass the anchor); a zero deviation is left alone (no 0/0).
"""

import numpy as np

from .adamw import AdamW


def project(p_tilde, p, g, anchor, strength):
    if not -np.sum(g * (p - anchor)) < 0:
        return p_tilde
    now, before = np.linalg.norm(p_tilde - anchor), np.linalg.norm(p - anchor)
    if now == 0:
        return p_tilde
    r = np.clip((now - before) / now, 0, 1)
    return p_tilde - min(strength * r, 1) * (p_tilde - anchor)


class SPD:
    def __init__(self, strength=0.1, anchor=0.0, moment=None):
        self.strength, self.anchor, self.moment = strength, anchor, moment or AdamW()

    def step(self, p, g, lr):
        u = self.moment.direction(g)
        return p.copy() if u is None else project(p - lr * u, p, g, self.anchor, self.strength)
