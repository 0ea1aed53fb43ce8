r"""AdamW: divide the running mean of the gradient by the root of its running mean square.

.. math::
    m_t &= b_1 m_{t-1} + (1-b_1) g_t, \quad v_t = b_2 v_{t-1} + (1-b_2) g_t^2 \\
    u_t &= \hat m_t / (\sqrt{\hat v_t} + \epsilon), \quad p \leftarrow (1 - lr \lambda) p - lr\, u_t

Source: Loshchilov and Hutter, arXiv:1711.05101, Algorithm 2 (torch.optim.AdamW: decay first, lr times lambda).
``eps_inside``: eps beside the *uncorrected* root, sqrt(v) + eps, as in the first Hugging Face AdamW and in grams.Grams.
``damping(m_{t-1}, g_t)``: factor on the gradient that enters m, not v (TAM).
"""

import numpy as np


class AdamW:
    def __init__(self, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, eps_inside=False):
        self.betas, self.eps, self.weight_decay, self.eps_inside = betas, eps, weight_decay, eps_inside
        self.m = self.v = 0.0
        self.t = 0

    def direction(self, g, damping=None):
        b1, b2 = self.betas
        self.t += 1
        d = 1.0 if damping is None else damping(self.m, g)
        self.m = b1 * self.m + (1 - b1) * d * g
        self.v = b2 * self.v + (1 - b2) * g**2
        m_hat = self.m / (1 - b1**self.t)
        correction = np.sqrt(1 - b2**self.t)
        if self.eps_inside:
            return m_hat / ((np.sqrt(self.v) + self.eps) / correction)
        return m_hat / (np.sqrt(self.v) / correction + self.eps)

    def step(self, p, g, lr):
        return p * (1 - lr * self.weight_decay) - lr * self.direction(g)
