r"""Edge suppression: take a share of what a gradient's norm has beyond a multiple of the running norm.

.. math::
    \ell_t &= \lambda \gamma_{t-1}, \quad \lambda = 1 / (1 - \text{threshold}) \\
    \hat g_t &= g_t\,(1 - \text{penalty}\,(1 - \ell_t / \|g_t\|)) \text{ if } \|g_t\| > \ell_t, \text{ else } g_t \\
    \gamma_t &= \operatorname{mean of } \|\hat g_1\|, \dots, \|\hat g_t\| \text{ with weights } \beta^{t-i}

Source: AdaGC, Wang et al., arXiv:2502.11034, Algorithm 1: h = min(lambda_rel gamma_{t-1} / ||g||, 1), g <- h g,
gamma <- beta gamma + (1-beta) ||h g||, per tensor; penalty = 1 here. Its warm-up clips the global norm and keeps the
least norm; here the first ``warmup`` gradients are only recorded, and the average is over the recorded ones
(bias-corrected). Zero and non-finite gradients are not recorded.
``norms``: what was recorded, kept whole and averaged by the definition.
"""

import numpy as np


class EdgeSuppression:
    def __init__(self, threshold=0.6, penalty=0.1, beta=0.98, warmup=20):
        self.threshold, self.penalty, self.beta, self.warmup = threshold, penalty, beta, warmup
        self.norms, self.spikes = [], 0

    @property
    def gamma(self):
        weights = [self.beta**i for i in range(len(self.norms))][::-1]
        return float(np.average(self.norms, weights=weights)) if self.norms else 0.0

    def __call__(self, g):
        norm = np.sqrt(np.sum(g**2))
        if norm == 0 or not np.isfinite(norm):
            return g
        if self.norms and len(self.norms) >= self.warmup:
            limit = self.gamma / (1 - self.threshold)
            if norm > limit:
                self.spikes += 1
                after = limit + (1 - self.penalty) * (norm - limit)
                g, norm = g * (after / norm), after
        self.norms.append(norm)
        return g


class Before:
    """A moment whose gradients are filtered first."""

    def __init__(self, filter, moment, weight_decay=0.0):
        self.filter, self.moment, self.weight_decay = filter, moment, weight_decay

    def step(self, p, g, lr):
        return p * (1 - lr * self.weight_decay) - lr * self.moment.direction(self.filter(g))
