r"""LoRA+: the zero-initialised factor B learns ``ratio`` times faster than A.

.. math:: lr_B = \rho\, lr_A

Source: Hayou et al., arXiv:2402.12354, section 4 (the paper recommends a ratio of about 16).
Differs: decay of B uses lr, not ratio * lr as a bare param group would (TECHNIQUES.md section 16, step 8).
"""

from .pair import Pair


class LoRAPlus(Pair):
    def __init__(self, ratio=16.0, **adamw):
        super().__init__(**adamw)
        self.ratio = ratio

    def multipliers(self, A, B):
        return 1.0, self.ratio
