"""One technique behind Adam, in the real optimizer."""

import numpy as np
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from tests.support.oracle_runs import DECAY, rate


def optimizer(params, name, state="fp32", decay=0.0, lr=1e-3, others=(), **options):
    chain = [build("adam"), build("weight_decay"), build(name, **options), *map(build, others)]
    return HinaOptimizer(params.items(), chain, lr=lr, weight_decay=decay, state=state, decay_roles="all")


def starts(shapes, zero=()):
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=shape) * 0.5 * (name not in zero) for name, shape in shapes.items()}


def run(name, shapes, grads, zero=(), **options):
    """Final parameters and their optimizer, float64, under AdamW."""
    params = {key: torch.nn.Parameter(torch.from_numpy(p)) for key, p in starts(shapes, zero).items()}
    mine = optimizer(params, name, decay=DECAY, **options)
    for step, by_name in enumerate(grads):
        mine.param_groups[0]["lr"] = rate(step)
        for key, param in params.items():
            param.grad = torch.from_numpy(by_name[key].copy())
        mine.step()
    return {key: param.detach().numpy() for key, param in params.items()}, mine
