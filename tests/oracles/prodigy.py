r"""Prodigy's rate over any step, from Mishchenko and Defazio, arXiv:2306.06101, Algorithm 4.

.. math:: r_{k+1} = \beta r_k + (1-\beta) \gamma_k d_k^2 \langle g_k, x_0 - x_k\rangle, \quad
          s_{k+1} = \beta s_k + (1-\beta) \gamma_k d_k^2 g_k, \quad
          d_{k+1} = \max(d_k, c\, r_{k+1} / \lVert s_{k+1} \rVert_1)

The step k is made with d_k. For a step u other than Adam's the norm is <s, u>, which for sign steps is the 1-norm.
With several groups the norm's part of each is weighted by its rate over the largest (this project's).
"""

import numpy as np


class Rate:
    """``add`` each matrix's part of a step that moved it by -rate * d * u, then ``finish`` the step."""

    def __init__(self, d0=3e-4, coef=1.0, beta=0.9995):
        self.d0, self.d, self.coef, self.beta = d0, d0, coef, beta
        self.r, self.s, self.size, self.rate = {}, {}, {}, {}

    def add(self, name, g, moved, u, rate):
        """moved: x_0 - x, before the step."""
        if not rate:
            return
        weight = rate * self.d**2
        self.r[name] = self.beta * self.r.get(name, 0.0) + (1 - self.beta) * weight * np.sum(g * moved)
        self.s[name] = self.beta * self.s.get(name, 0.0) + (1 - self.beta) * weight * g
        self.size[name], self.rate[name] = abs(np.sum(self.s[name] * u)), rate

    def finish(self):
        if not self.r:
            return
        largest = max(self.rate.values())
        norm = sum(size * self.rate[name] / largest for name, size in self.size.items())
        if norm:
            self.d = max(self.d, self.coef * sum(self.r.values()) / norm)
