r"""NorMuon: Muon whose step is evened out over the neurons.

.. math::
    O_t &= \mathrm{NS}(M_t) \text{ as in Muon}, \quad
    v_t = \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}_{\text{cols}}(O_t \odot O_t) \\
    \hat O_t &= O_t \oslash (\sqrt{v_t} + \epsilon), \quad \hat\eta = 0.2\, lr \sqrt{m n} / \|\hat O_t\|_F \\
    W &\leftarrow (1 - lr\,\lambda) W - \hat\eta\, \hat O_t

Source: Li et al., arXiv:2510.05491, Algorithm 1; the neurons are its rows. With ``by_row=False`` they are the vectors
along the shorter side, so columns of a wide matrix: what the paper's rule does to the transpose. A zero O stays zero.
Then neurons without a gradient keep their v, and the RMS is over the others.
"""

import numpy as np

from .muon import Muon, extent


class NorMuon(Muon):
    def __init__(self, beta2=0.95, eps=1e-8, by_row=True, **muon):
        super().__init__(**muon)
        self.beta2, self.eps, self.by_row, self.v = beta2, eps, by_row, 0.0

    def direction(self, g, damping=None):
        rms, self.rms = self.rms, None
        o = super().direction(g, damping)
        self.rms = rms
        shape, o, g = o.shape, o.reshape(len(o), -1), g.reshape(len(g), -1)
        axis = 1 if self.by_row or o.shape[0] >= o.shape[1] else 0
        live, width = np.ones(o.shape[1 - axis], bool), o.shape[axis]
        if not self.by_row:
            live, width = extent(o, g)
        keep = np.expand_dims(np.where(live, self.beta2, 1.0), axis)
        self.v = keep * self.v + (1 - keep) * np.sum(o * o, axis=axis, keepdims=True) / width
        hat = o / (np.sqrt(self.v) + self.eps)
        norm = np.sqrt(np.sum(hat * hat))
        return (hat if norm == 0 else rms * np.sqrt(width * live.sum()) / norm * hat).reshape(shape)
