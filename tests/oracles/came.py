r"""CAME: divide by a factored second moment, average, divide by the factored instability of that average.

.. math::
    q = g^2 + \epsilon_1,\quad R \leftarrow b_2 R + (1-b_2)\operatorname{mean}_{cols} q,\quad
        C \leftarrow b_2 C + (1-b_2)\operatorname{mean}_{rows} q,\quad V = R C / \operatorname{mean} R \\
    u = g / \sqrt{V},\quad u \leftarrow u / \max(1, \operatorname{RMS}(u) / d),\quad m \leftarrow b_1 m + (1-b_1) u \\
    S \text{ from } (u - m)^2 + \epsilon_2 \text{ with } b_3 \text{ as V from q},\quad
        p \leftarrow (1 - lr \lambda) p - lr\, m / \sqrt{S}

Source: Luo et al., arXiv:2307.02047, Algorithm 2, and the authors' CAME.py, which leaves out every bias correction,
adds ``eps2`` to the residual, keeps a dense V for vectors and divides their m by nothing.
A convolution is the matrix [out, in * kh * kw]; the authors' code factors each [kh, kw] plane instead.
``bias_correct_confidence``: S / (1 - b3^t). The RMS is over the entries of u that are not zero; the authors' (with
``count_zeros``) is over all.
``beta1_decay``, ``beta1_floor``: b1 at step t is max(b1 lambda^(t-1), floor), the first factor from Kingma & Ba,
arXiv:1412.6980, section 4; a floor above b1 does nothing.
"""

import numpy as np


def factored(row, column):
    return np.outer(row, column) / row.mean()


class CAME:
    def __init__(
        self,
        betas=(0.9, 0.999, 0.9999),
        eps=(1e-30, 1e-16),
        clip_threshold=1.0,
        weight_decay=0.0,
        bias_correct_confidence=False,
        beta1_decay=1.0,
        beta1_floor=0.4,
        count_zeros=False,
    ):
        self.count_zeros = count_zeros
        self.beta1_decay, self.beta1_floor = beta1_decay, beta1_floor
        self.betas, self.eps, self.clip_threshold = betas, eps, clip_threshold
        self.weight_decay, self.bias_correct_confidence = weight_decay, bias_correct_confidence
        self.m = self.v = self.r = self.c = self.r_res = self.c_res = 0.0
        self.t = 0

    def direction(self, g, damping=None):
        """``damping(m_{t-1}, u_t)``: factor on what enters m; the residual is that of the undamped u."""
        if g.ndim < 2:
            return self._vector(g, damping)
        shape, g = g.shape, g.reshape(len(g), -1)
        _, b2, b3 = self.betas
        q = g**2 + self.eps[0]
        self.r = b2 * self.r + (1 - b2) * q.mean(axis=1)
        self.c = b2 * self.c + (1 - b2) * q.mean(axis=0)
        u = self._average(g / np.sqrt(factored(self.r, self.c)), damping)
        residual = (u - self.m) ** 2 + self.eps[1]
        self.r_res = b3 * self.r_res + (1 - b3) * residual.mean(axis=1)
        self.c_res = b3 * self.c_res + (1 - b3) * residual.mean(axis=0)
        s = factored(self.r_res, self.c_res)
        if self.bias_correct_confidence:
            s = s / (1 - b3**self.t)
        return (self.m / np.sqrt(s)).reshape(shape)

    def _vector(self, g, damping):
        b2 = self.betas[1]
        self.v = b2 * self.v + (1 - b2) * (g**2 + self.eps[0])
        self._average(g / np.sqrt(self.v), damping)
        return self.m

    def _average(self, u, damping):
        """Clips u and moves m; returns the clipped u."""
        b1 = self.betas[0]
        b1 = max(b1 * self.beta1_decay**self.t, min(self.beta1_floor, b1))
        self.t += 1
        counted = u.size if self.count_zeros else max(1, np.count_nonzero(u))
        u = u / max(1.0, np.sqrt((u**2).sum() / counted) / self.clip_threshold)
        d = 1.0 if damping is None else damping(self.m, u)
        self.m = b1 * self.m + (1 - b1) * d * u
        return u

    def step(self, p, g, lr):
        return p * (1 - lr * self.weight_decay) - lr * self.direction(g)
