r"""LoRA-RITE: precondition each factor in the orthonormal basis of its partner, so that only W = B A matters.

Letters: A [r, n] down, B [m, r] up. Both are brought to "rank last": L = A^T [n, r] and R = B [m, r], W = R L^T.
Every update does the following to L with partner R and, with the roles swapped, to R with partner L:

.. math::
    R &= Q_R T_R &&\text{reduced QR; } Q_R\,[m, k],\ T_R\,[k, r],\ k = \min(m, r) \\
    \bar g &= g_L T_R^{+} &&[n, k]\text{, "unmagnified" gradient, } G^T Q_R \text{ at full rank} \\
    P &= Q_{R,t}^T Q_{R,t-1} &&[k, k]\text{, last update's basis seen in this one's} \\
    V_t &= \beta_{2,t}\, P V_{t-1} P^T + (1-\beta_{2,t})\, \bar g^T \bar g / n &&[k, k]\text{, n = rows of } \bar g \\
    \rho_t &= \beta_{2,t} (\rho_{t-1} + \delta),\ \
        \delta = \min\{\max_i [\lambda_i(V_{t-1}) - \lambda_i(P V_{t-1} P^T)]_+,\
        [\operatorname{tr} V_{t-1} - \operatorname{tr} P V_{t-1} P^T]_+\} &&\text{only with escape} \\
    S &= \bar g\, E \operatorname{diag}\big(1/(\sqrt{\max(w, 0) + \rho_t + \epsilon_r} + \epsilon)\big) E^T
        &&V_t = E \operatorname{diag}(w) E^T \\
    M_t &= \beta_{1,t}\, M_{t-1} P^T + (1-\beta_{1,t})\, S &&[n, k]\text{, averages the preconditioned gradient} \\
    L &\leftarrow L - lr\,(M_t T_R^{+T} + \lambda L) &&\text{decay with plain lr, as AdamW's}

Facts, from lora_rite.py of gkevinyen5418/LoRA-RITE (c9bb451) and pytorch_optimizer 3.10.1 to 4.1.0:

- **Jacobi.** A first loop takes both QRs, both pseudo-inverses and both gbar of every pair from the parameters before
  the step; a second loop updates. No factor ever sees its partner's new value.
- **Bias correction** is folded into the averages: beta_t = beta (1 - beta^(t-1)) / (1 - beta^t), t = 1 first, so
  beta_1 = 0 and the stored M and V are already the "hat" values (exactly, because M P^T and P V P^T are linear).
  The first call therefore needs no old basis, M or V: they are multiplied by 0.
- **Stored** between steps, per factor X: M [rows X, k] and Q_X [rows X, k] (together twice the factor, as AdamW),
  V [k, k] and rho (a scalar); one step counter a pair. V and M of L live in the basis Q_R, so L's transport P reads the
  stored basis of R, and the reverse. T, T^+, gbar and P are temporaries (the authors leave gbar and T^+ in the state).
- **Orientation.** Parameters must come as A, B, A, B, ...; ``lora_l_dim=0``, ``lora_r_dim=-1`` are the rank axes. All
  other axes are flattened, so a down convolution [r, in, kh, kw] is right as it is, but for an up convolution
  [out, r, 1, 1] the axis -1 is not the rank: view it as [out, r] first.
- **Pseudo-inverse**: torch.linalg.pinv(T), cut-off max(shape) * eps_mach * largest singular value.
- **B = 0** gives T_B = 0, T_B^+ = 0, hence gbar_A = 0: A stands still while B moves. Q_B is then an arbitrary basis: no
  harm, as M_A = V_A = 0. The bias correction does count that dead first step: at t = 2 V_A is about half and M_A
  about (1-b1)/(1-b1^2) of a fresh start (b1 = 0.9: 0.53), so A's first real step is about 0.74 of B's.
- **eps**: pytorch_optimizer adds eps_r = eps^2 under the root; the authors compute it and do not use it. Nor do they
  clamp negative eigenvalues at 0: one of -1e-20 makes the whole update NaN, and nan_to_num then makes it 0.
  pytorch_optimizer clamps, and so do we. ``relative_epsilon=True`` fails in the authors' file (undefined name); in
  pytorch_optimizer eps_r becomes eps^2 max(w), the outer eps unchanged. eps (1e-6 there) is compared with entries of
  gbar / sqrt(n), that is with a gradient of W, not of A or B.
- **Directions without gradient** (w = 0, e.g. rank of gbar below k) are multiplied by 1/(2 eps) with eps_r = eps^2, but
  gbar has nothing there, except what rounding leaves.
- **Off here, on by default there**: ``clip_unmagnified_grad=1`` scales the gbar of the whole model by
  min(1, 1/||all gbar||_F); ``update_skipping=1`` sets gbar of a factor to zero when its RMS exceeds 1 (before that norm
  is taken), while its V, M and bases still advance. Both are compared with an unscaled gradient of W.
- **Off in both**: ``apply_escape`` (rho, here ``escape``), ``update_capping`` (M divided by max(1, RMS(M)/cap)),
  ``balance_param`` (after the step both factors are scaled to the geometric mean of their norms + 1e-6; M, V and the
  bases are left, and need no change: a basis does not see a scale).
- **Rank above min(m, n)**: k < r; pytorch_optimizer works (V and M become [k, k] and [rows, k] at the first call), the
  authors' file raises in a reshape.
- Pairs with a missing gradient are skipped by pytorch_optimizer (state and counter kept) and crash the authors' file.
- Measured over 30 steps: this oracle equals pytorch_optimizer 4.1.0 to 2e-14 (2e-15 with r <= m, n) and, with
  ``eps_root=0``, the authors' file to 2e-15; with eps 1e-2 the two packages differ by 6e-5.
- A gauge change (A, B) -> (X A, B X^-1) rotates Q_A and Q_B: P carries M and V along and the path of W stays the same.

Source: Yen et al., arXiv:2410.20625, Algorithm 1.
"""

import numpy as np


def bias_corrected_decay(beta, t):
    return beta * (1 - beta ** (t - 1)) / (1 - beta**t)


def symmetric(x):
    return (x + x.T) / 2


def live_rows(g):
    """Rows that have a gradient: the others belong to no sample that was seen."""
    return max(np.count_nonzero(np.any(g != 0, axis=1)), 1)


class Factor:
    """Moments of one factor X [rows, r], kept in the basis of its partner."""

    def __init__(self, betas, eps, eps_root, escape):
        self.betas, self.eps, self.eps_root, self.escape = betas, eps, eps_root, escape
        self.M = self.V = self.Q_old = None
        self.rho, self.t = 0.0, 0

    def update(self, g, partner):
        """u [rows, r] from g [rows, r] and the partner [other rows, r]."""
        self.t += 1
        b1, b2 = (bias_corrected_decay(b, self.t) for b in self.betas)
        Q, T = np.linalg.qr(partner)  # [other, k], [k, r]
        T_inv = np.linalg.pinv(T, rcond=max(T.shape) * np.finfo(np.float64).eps)  # [r, k]
        g_bar = g @ T_inv  # [rows, k]
        k = Q.shape[1]
        M, V, Q_old = (np.zeros((len(g), k)), np.zeros((k, k)), Q) if self.t == 1 else (self.M, self.V, self.Q_old)

        P = Q.T @ Q_old  # [k, k]
        V_here = symmetric(P @ V @ P.T)
        if self.escape:
            drop = np.max(np.linalg.eigvalsh(V) - np.linalg.eigvalsh(V_here))
            self.rho = b2 * (self.rho + min(max(drop, 0.0), max(np.trace(V) - np.trace(V_here), 0.0)))
        self.V = b2 * V_here + (1 - b2) * symmetric(g_bar.T @ g_bar) / live_rows(g)
        w, E = np.linalg.eigh(self.V)
        root = E @ np.diag(1 / (np.sqrt(np.maximum(w, 0) + self.rho + self.eps_root) + self.eps)) @ E.T
        self.M = b1 * M @ P.T + (1 - b1) * g_bar @ root
        self.Q_old = Q
        return self.M @ T_inv.T


class LoRARite:
    """eps_root None is eps**2 (pytorch_optimizer); 0 is the authors' file."""

    def __init__(self, betas=(0.9, 0.999), eps=1e-12, eps_root=None, weight_decay=0.0, escape=False):
        eps_root = eps**2 if eps_root is None else eps_root
        self.weight_decay = weight_decay
        self.down, self.up = (Factor(betas, eps, eps_root, escape) for _ in range(2))

    def step(self, A, B, gA, gB, lr):
        uA = self.down.update(gA.T, B).T
        uB = self.up.update(gB, A.T)
        return A - lr * (uA + self.weight_decay * A), B - lr * (uB + self.weight_decay * B)
