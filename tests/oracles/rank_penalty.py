r"""Rank penalty: weighted soft-thresholding of the singular values of W = B A, by the full SVD of W.

.. math::
    W = U \Sigma V^T, \quad \tau_i = lr \cdot \text{strength} \cdot \sigma_1 (\sigma_1 / \sigma_i)^{\text{emphasis}-1},
    \quad W' = U \max(\Sigma - \tau, 0) V^T, \quad B' = B - (W - W') A^+

W' is the proximal point of sum tau_i sigma_i(X): argmin_X ||X - W||^2 / 2 + sum tau_i sigma_i(X), as the weights do not
fall with i (Gu et al., CVPR 2014, Corollary 1; equal weights: Cai, Candes & Shen 2010, Theorem 2.1). W' has the rows of
W, hence of A, so B' A = W' exactly; what B does outside A's row space stays.
"""

import numpy as np


def thresholds(sigma, strength, emphasis):
    """``strength``: lr included. Infinite where sigma is 0."""
    if sigma[0] == 0:
        return np.zeros_like(sigma)
    with np.errstate(divide="ignore", over="ignore"):
        return strength * sigma[0] * (sigma[0] / sigma) ** (emphasis - 1)


def shrink(W, strength, emphasis):
    U, sigma, Vt = np.linalg.svd(W, full_matrices=False)
    return U @ np.diag(np.maximum(sigma - thresholds(sigma, strength, emphasis), 0)) @ Vt


def penalise(A, B, strength, emphasis=1.2):
    """B' for B [m, r] and A [r, n]."""
    W = B @ A
    return B - (W - shrink(W, strength, emphasis)) @ np.linalg.pinv(A, rcond=1e-7)


class RankPenalty:
    """A pair of factors, each with its own step; then B is penalised with A as it was before."""

    def __init__(self, down, up, strength=0.01, emphasis=1.2):
        self.down, self.up, self.strength, self.emphasis = down, up, strength, emphasis

    def step(self, A, B, gA, gB, lr):
        after = self.down.step(A, gA, lr), self.up.step(B, gB, lr)
        return after[0], penalise(A, after[1], lr * self.strength, self.emphasis)
