"""An oracle beside its official implementation, step by step."""

import numpy as np
import torch

TOL = 1e-12
STEPS = 300
SHAPES = [(7, 5), (16,), (4, 3, 3, 3)]


def gradients(shape, steps=STEPS, seed=0, sparse=False):
    """Noise around a slowly turning mean, sizes over four decades; ``sparse`` puts exact zeros in."""
    rng = np.random.default_rng(seed)
    scale = 10 ** rng.uniform(-3, 1, shape)
    phase = rng.uniform(0, 6, shape)
    for t in range(steps):
        g = scale * (np.sin(0.05 * t + phase) + rng.standard_normal(shape))
        yield g * (rng.random(shape) > 0.3) if sparse else g


def lr_at(t):
    return 1e-2 * (1 + 0.5 * np.sin(0.1 * t))


def drift(oracle, make_official, shape, sparse=False, flat=False):
    """``flat`` gives the oracle the same numbers as a matrix [first axis, rest] or row."""
    p = np.random.default_rng(1).standard_normal(shape)
    view = (shape[0], -1) if len(shape) > 1 else (1, -1)
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    official = make_official([parameter])
    worst = 0.0
    for t, g in enumerate(gradients(shape, sparse=sparse)):
        lr = lr_at(t)
        parameter.grad = torch.from_numpy(g.copy())
        for group in official.param_groups:
            group["lr"] = lr
        official.step()
        p = oracle.step(p.reshape(view), g.reshape(view), lr).reshape(shape) if flat else oracle.step(p, g, lr)
        worst = max(worst, np.abs(p - parameter.detach().numpy()).max() / np.abs(p).max())
    return worst
