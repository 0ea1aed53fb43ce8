"""A signal as a technique gets it."""

import dataclasses as dc

import torch

from hina_kohya.core.signal import Signal


def signal(n=4, m=6, k=5, seed=0, dtype=torch.float64, **changes):
    generator = torch.Generator().manual_seed(seed)
    param, grad, update = (torch.randn(n, m, k, generator=generator, dtype=dtype) for _ in range(3))
    lr, decay, step = (torch.full((n, 1, 1), value, dtype=torch.float64) for value in (1e-2, 0.1, 3.0))
    s = Signal(param, param, grad, grad, lr, decay, step, update=update, direction=update)
    return dc.replace(s, **changes)
