r"""Dynamic weight decay: full strength until step T, then falling by a factor every further T steps, down to a floor.

.. math:: \lambda_t = \lambda \max(\rho_{\min},\ f^{(t-T)/T}) \text{ for } t > T, \quad \lambda \text{ before}

t = 1 is the first call. T may be a fraction of the run times its length.
Source: hinablue's fork. Differs: its exponent was capped at 2, which made the floor unreachable; ours is not.
"""

from .adamw import AdamW


def weight_decay_at(t, weight_decay, transition_steps=1000, factor=0.7, min_ratio=0.1):
    if t <= transition_steps:
        return weight_decay
    return weight_decay * max(min_ratio, factor ** ((t - transition_steps) / transition_steps))


class DynamicWeightDecay:
    def __init__(self, weight_decay, transition_steps=1000, factor=0.7, min_ratio=0.1, moment=None):
        self.schedule = {"transition_steps": transition_steps, "factor": factor, "min_ratio": min_ratio}
        self.weight_decay, self.moment, self.t = weight_decay, moment or AdamW(), 0

    def step(self, p, g, lr):
        self.t += 1
        u = self.moment.direction(g)
        return (
            p.copy()
            if u is None
            else p * (1 - lr * weight_decay_at(self.t, self.weight_decay, **self.schedule)) - lr * u
        )
