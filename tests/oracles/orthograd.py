r"""OrthoGrad: remove from the gradient its part along the parameter and restore the norm.

.. math:: g_o = g - \frac{\langle p, g\rangle}{\langle p, p\rangle + \epsilon}\, p, \quad
    g \leftarrow g_o \, \|g\| / (\|g_o\| + \epsilon)

Source: Prieto et al., arXiv:2501.04697 (orthograd.py, eps 1e-30); p is the parameter before decay.
Differs: g_o is zero where ||g_o|| <= 4 eps_mach ||g|| (g parallel to p: the rescale would amplify rounding), as in
pytorch_optimizer; one-element tensors pass unchanged (there every gradient is parallel). Entries of p without a
gradient count as zero.
"""

import numpy as np


def orthograd(p, g, eps=1e-30):
    if g.size == 1:
        return g.copy()
    p = p * (g != 0)
    g_o = g - np.sum(p * g) / (np.sum(p * p) + eps) * p
    norm, norm_o = np.linalg.norm(g), np.linalg.norm(g_o)
    if norm_o <= 4 * np.finfo(np.float64).eps * norm:
        return np.zeros_like(g)
    return g_o * (norm / (norm_o + eps))


class OrthoGrad:
    """OrthoGrad before a moment; None is plain gradient descent, as in the official wrapper around SGD."""

    def __init__(self, moment=None):
        self.moment = moment

    def step(self, p, g, lr):
        g = orthograd(p, g)
        return p - lr * g if self.moment is None else self.moment.step(p, g, lr)
