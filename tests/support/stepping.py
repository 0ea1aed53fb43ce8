"""Parameters of every shape that ever broke an optimizer, their gradients, and steps."""

import torch

SHAPES = {
    "lora_unet_a.lora_down.weight": (4, 12),
    "lora_unet_a.lora_up.weight": (10, 4),
    "lora_unet_b.lora_down.weight": (4, 12),
    "lora_unet_b.lora_up.weight": (10, 4),
    "lora_unet_c.lora_down.weight": (4, 3, 3, 3),
    "lora_unet_c.lora_up.weight": (6, 4, 1, 1),
    "lora_unet_k.lokr_w1": (4, 4),
    "lora_unet_k.lokr_w2_a": (8, 4),
    "lora_unet_k.lokr_w2_b": (4, 40),
    "lora_unet_d.dora_scale": (10, 1),
    "lora_unet_d.scalar": (),
    "head.weight": (7, 5),
    "head.bias": (7,),
    "gain": (1,),
}


def make_params(dtype=torch.float32, seed=0, shapes=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES if shapes is None else shapes
    return {
        name: torch.nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * 0.3).to(dtype))
        for name, shape in shapes.items()
    }


def set_grads(params, step, seed=1, scale=1.0):
    """The same gradients for the same (step, parameter), whatever was done before."""
    for index, param in enumerate(params.values()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step * 1_009 + index)
        param.grad = (torch.randn(param.shape, generator=generator, dtype=torch.float64) * scale).to(param.dtype)


def train(optimizer, params, steps, start=0, **kwargs):
    for step in range(start, start + steps):
        set_grads(params, step, **kwargs)
        optimizer.step()
