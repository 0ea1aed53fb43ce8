r"""ADOPT: normalise the gradient by the *previous* second moment, then average.

.. math::
    \text{call 0:}\quad & v = g^2, \text{ nothing else (no decay either)} \\
    \text{call } t \ge 1:\quad & n = \operatorname{clip}(g / \max(\sqrt{v}, \epsilon), -t^{1/4}, t^{1/4}) \\
    & m \leftarrow b_1 m + (1-b_1) n, \quad p \leftarrow (1 - lr \lambda) p - lr\, m \\
    & v \leftarrow b_2 v + (1-b_2) g^2 \quad\text{(after p)}

Source: Taniguchi et al., arXiv:2411.02853, Algorithm 2 with the clip of the authors' code (adopt.py, decouple=True).
No bias correction. ``self.t`` counts the calls before this one, so the first real update is clipped at 1.
``damping(m_{t-1}, n_t)``: factor on what enters m (TAM measures in the space of n).
"""

import numpy as np


class ADOPT:
    def __init__(self, betas=(0.9, 0.9999), eps=1e-6, weight_decay=0.0, clip_exponent=0.25):
        self.betas, self.eps, self.weight_decay, self.clip_exponent = betas, eps, weight_decay, clip_exponent
        self.m = self.v = 0.0
        self.t = -1

    def direction(self, g, damping=None):
        b1, b2 = self.betas
        self.t += 1
        if self.t == 0:
            self.v = g**2
            return None
        bound = self.t**self.clip_exponent
        n = np.clip(g / np.maximum(np.sqrt(self.v), self.eps), -bound, bound)
        d = 1.0 if damping is None else damping(self.m, n)
        self.m = b1 * self.m + (1 - b1) * d * n
        self.v = b2 * self.v + (1 - b2) * g**2
        return self.m

    def step(self, p, g, lr):
        u = self.direction(g)
        return p.copy() if u is None else p * (1 - lr * self.weight_decay) - lr * u
