r"""ALLoRA: each output row of B learns at a rate inverse to the root of the norm of that row of B A.

.. math:: s_i = 1 / \sqrt{\|(B A)_{i,:}\|_2 + 1/\eta^2}, \quad u_B \leftarrow \operatorname{diag}(s)\, u_B, \quad
    u_A \leftarrow u_A

The norm is not squared; at B = 0 the factor is eta.
Source: Huang and Balestriero, arXiv:2410.09692, Definition 1 (read second hand).
Differs: the paper scales the *gradients* of A and B. Adam cancels a slowly varying scale of the gradient and the A part
cannot be made from grad_A alone, so the rows scale the update of B, and A is left as it is.
"""

import numpy as np

from .pair import Pair


def row_factor(A, B, eta):
    """[m, 1] from A [r, n] and B [m, r]."""
    return 1 / np.sqrt(np.linalg.norm(B @ A, axis=1, keepdims=True) + 1 / eta**2)


class ALLoRA(Pair):
    def __init__(self, eta=1.0, **adamw):
        super().__init__(**adamw)
        self.eta = eta

    def multipliers(self, A, B):
        return 1.0, row_factor(A, B, self.eta)
