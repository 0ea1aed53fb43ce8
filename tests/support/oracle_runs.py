"""Gradients, shapes and schedules of the comparisons with the oracles."""

import numpy as np

STEPS, LR, DECAY = 40, 1e-2, 0.1
MATRICES = {"first.weight": (7, 5), "second.weight": (7, 5), "vector": (16,), "kernel.weight": (4, 3, 3, 3)}


def gradients(names, shapes, steps, seed=0):
    generator = np.random.default_rng(seed)
    return [{name: generator.normal(size=shapes[name]) for name in names} for _ in range(steps)]


def sparse(grads, seed=9):
    """Gradients with a dead first row, a dead last column, and rows that have one only now and then.

    Of a pair only what is an output or an input of the layer: the rank's directions are seen together.
    """
    generator = np.random.default_rng(seed)
    for by_name in grads:
        for name, grad in by_name.items():
            if grad.ndim > 1 and "lora_down" not in name:
                grad[generator.random(len(grad)) < 0.3] = 0.0
                grad[0] = 0.0
            if grad.ndim > 1 and "lora_up" not in name:
                grad[..., -1] = 0.0
    return grads


def start(shapes, seed=1):
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape) * 0.5 for name, shape in shapes.items()}


def rate(step):
    return LR / (1 + step % 3)


def close(mine, theirs):
    np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-12)


PAIRS = {"lora_unet_a": ((4, 6), (5, 4)), "lora_unet_b": ((4, 6), (5, 4)), "lora_unet_c": ((2, 3, 3, 3), (5, 2, 1, 1))}
PAIR_SHAPES = {
    f"{module}.{role}.weight": shape
    for module, both in PAIRS.items()
    for role, shape in zip(("lora_down", "lora_up"), both, strict=True)
}


def flat(arrays, names):
    return [arrays[name].reshape(PAIR_SHAPES[name][0], -1) for name in names]
