r"""The learning rate mask of Automagic, as a multiplier: up while the gradient keeps its sign, down when it flips.

.. math:: a = \operatorname{sign}(g_t) \operatorname{sign}(g_{t'}),\quad k \leftarrow \operatorname{clip}(k + a),\quad
          p \leftarrow p - lr\, (1 + b)^k u

k starts at 0; t' is the last step with g not 0, and there is no a before one. (1 + b)^k stays in [low, high].
``until``: after so many steps no k moves any more, and one that has not begun never does.
``per_row``: one k a row, a the sign of the row's mean; elements without t' count as negative once the row has one.

Source: ostris/ai-toolkit, toolkit/optimizers/automagic.py: there the mask *is* the learning rate, moves by +-bump, and
the first step compares with "negative". Not on the package index, so there is no cross-check with it.
"""

import numpy as np

from .adamw import AdamW


class AutomagicMask:
    def __init__(self, bump=0.05, low=0.1, high=10.0, per_row=False, until=np.inf, moment=None, weight_decay=0.0):
        self.base, self.per_row, self.weight_decay = 1 + bump, per_row, weight_decay
        self.moment = AdamW() if moment is None else moment
        self.until, self.t = until, 0
        self.least = -np.floor(np.log(1 / low) / np.log(self.base) + 1e-9)
        self.most = np.floor(np.log(high) / np.log(self.base) + 1e-9)
        self.last = self.k = self.seen = None

    def multiplier(self, g):
        self.t += 1
        sign = np.sign(g).reshape(len(g), -1) if g.ndim > 1 else np.sign(g).reshape(1, -1)
        if self.last is None:
            width = 1 if self.per_row else sign.shape[1]
            self.last, self.k, self.seen = -np.ones_like(sign), np.zeros((len(sign), width)), False
        agree, now = sign * self.last, sign != 0
        if self.per_row:
            agree, now = np.sign(agree.mean(axis=1, keepdims=True)), now.any(axis=1, keepdims=True)
        moves = self.seen & (self.t <= self.until)
        self.k = np.where(moves, np.clip(self.k + agree, self.least, self.most), self.k)
        self.seen = self.seen | now
        self.last = np.where(sign == 0, self.last, sign)
        return np.broadcast_to(self.base**self.k, sign.shape).reshape(g.shape)

    def step(self, p, g, lr):
        return p * (1 - lr * self.weight_decay) - lr * self.multiplier(g) * self.moment.direction(g)
