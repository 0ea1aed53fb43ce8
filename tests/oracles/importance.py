r"""Importance: step what the loss depends on most by more, with geometric mean 1 within a param group.

.. math:: I \leftarrow \beta I + (1-\beta) \operatorname{mean}|p \odot g|, \quad \hat I = I / (1 - \beta^t), \quad
          y_i = b \tanh(s (\ell_i - \bar\ell) / b), \quad \text{multiplier} = e^{y_i - \bar y}

The mean is over entries that have a gradient.
Source: |p g|: Molchanov et al., arXiv:1611.06440 (first-order Taylor); its average: Zhang et al., arXiv:2206.12562
(PLATON, I-bar). The redistribution is this project's: l is log I-hat, averaged over a matrix and those tied to it.
The multipliers at step t are those of the averages after step t - 1.
"""

import math

import numpy as np


class Sensitivity:
    """The average of one matrix; a step whose gradient is not finite is none."""

    def __init__(self, beta=0.95):
        self.beta, self.sum, self.t = beta, 0.0, 0

    @property
    def value(self):
        return self.sum / (1 - self.beta**self.t) if self.t else 0.0

    def see(self, p, g):
        if not np.isfinite(g).all() or np.abs(g).max() > 1e17:  # a step that is left out
            return
        seen = np.abs(p * g).sum() / max(1, np.count_nonzero(g))
        self.sum = self.beta * self.sum + (1 - self.beta) * seen
        self.t += 1


def multipliers(values, groups, ties=None, strength=1.0, bound=2.0):
    """Of each matrix, from the averages of all; ``ties[i]`` are the others that share i's importance."""
    ties = ties or [()] * len(values)
    known = [0 < value < math.inf for value in values]
    result = [1.0] * len(values)
    for group in set(groups):
        own = [i for i in range(len(values)) if groups[i] == group and known[i]]
        if not own:
            continue
        shared = np.array([np.mean([math.log(values[j]) for j in (i, *ties[i]) if known[j]]) for i in own])
        b = math.log(bound)
        y = b * np.tanh(strength * (shared - shared.mean()) / b)
        for i, value in zip(own, y - y.mean(), strict=True):
            result[i] = math.exp(value)
    return result
