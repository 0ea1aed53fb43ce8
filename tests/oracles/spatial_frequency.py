r"""Spatial frequency: a linear low-pass over the kernel axes, from the definition of the Fourier transform.

.. math::
    G_{uv} = \sum_{yx} g_{yx} e^{-2\pi i (uy/k_h + vx/k_w)}, \quad
    f_{uv} = |(a_u, b_v)| / \max |(a, b)|, \quad a_u = \min(u, k_h - u) / k_h, \ b_v = \min(v, k_w - v) / k_w

and G_uv times 1 - penalty (f - preserve) / (1 - preserve) where f > preserve, transformed back. One kernel at a time,
both halves of the spectrum, sums written out. No paper.
"""

import numpy as np


def spatial_frequency(g, preserve=0.8, penalty=0.05):
    """g [out, in, kh, kw]; anything else is left alone."""
    if g.ndim != 4 or g.shape[2] * g.shape[3] == 1:
        return g
    return np.array([[_kernel(kernel, preserve, penalty) for kernel in row] for row in g])


def _kernel(g, preserve, penalty):
    height, width = g.shape
    down, across = _waves(height), _waves(width)
    spectrum = down @ g @ across
    f = np.array([[np.hypot(_distance(u, height), _distance(v, width)) for v in range(width)] for u in range(height)])
    f = f / f.max()
    for u in range(height):
        for v in range(width):
            if f[u, v] > preserve:
                spectrum[u, v] *= 1 - penalty * (f[u, v] - preserve) / (1 - preserve)
    back = down.conj() @ spectrum @ across.conj() / (height * width)
    assert np.abs(back.imag).max() < 1e-9
    return back.real


def _waves(n):
    k = np.arange(n)
    return np.exp(-2j * np.pi * np.outer(k, k) / n)


def _distance(k, n):
    return min(k, n - k) / n
