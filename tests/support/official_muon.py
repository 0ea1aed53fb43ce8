"""Muon's oracles beside official implementations."""

import numpy as np
import torch

SHAPES = [(7, 5), (4, 12), (6, 6), (2, 3)]


def drift(official_class, oracle, shape, steps=100, **options):
    """Largest difference at any step, relative to the largest entry, with a changing lr."""
    rng = np.random.default_rng(0)
    p, turn = rng.standard_normal(shape), rng.uniform(0, 6, shape)
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    official = official_class([parameter], **options)
    worst = 0.0
    for t in range(steps):
        g = np.sin(0.05 * t + turn) + rng.standard_normal(shape)
        lr = 1e-2 * (1 + 0.5 * np.sin(0.1 * t))
        parameter.grad = torch.from_numpy(g.copy())
        for group in official.param_groups:
            group["lr"] = lr
        official.step()
        p = oracle.step(p, g, lr)
        worst = max(worst, np.abs(p - parameter.detach().numpy()).max() / np.abs(p).max())
    return worst
