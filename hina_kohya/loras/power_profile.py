r"""How much of each step is in a power-function average: the latest count the most, the first next to nothing.

.. math::
    \hat\theta_\gamma(t) = \frac{\gamma + 1}{t^{\gamma + 1}} \int_0^t \tau^\gamma \theta(\tau)\, d\tau, \quad
    \beta_\gamma(t) = (1 - 1/t)^{\gamma + 1}, \quad
    \sigma_\mathrm{rel} = (\gamma + 1)^{1/2} (\gamma + 2)^{-1} (\gamma + 3)^{-1/2}

Unlike the average with one beta, its width is a share of the run, whatever the run's length, and the first weights are
forgotten. The width is what users give: sigma_rel, the standard deviation of the profile in units of the steps so far.

Source: Karras et al., arXiv:2312.02696, section 3 and Algorithm 2 (gamma of a width).
Differs: sigma_rel is bounded by gamma >= 0, the plain mean of all steps.
"""

import math
from collections.abc import Sequence

import numpy as np

WIDEST = 1 / math.sqrt(12)  # sigma_rel of gamma = 0


def exponent(sigma_rel: float) -> float:
    """gamma of a relative width. Raises ValueError outside (0, WIDEST]."""
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"must be above 0 and at most {WIDEST:.4f}, the plain mean of all steps")
    square = sigma_rel**-2
    roots = np.roots([1, 7, 16 - square, 12 - square])
    return max(0.0, float(roots.real.max()))  # of three real roots the other two are below -1


def decay(step: int, gamma: float) -> float:
    """beta: what the average keeps of itself at a step, which counts from 1; the first step is all of it."""
    return (1 - 1 / step) ** (gamma + 1)


def shares(steps: Sequence[int], gamma: float) -> list[float]:
    """Of snapshots at these ascending steps: each stands for the steps since the one before. They sum to 1."""
    ends = [(step / steps[-1]) ** (gamma + 1) for step in steps]
    return [end - before for before, end in zip([0.0, *ends], ends, strict=False)]
