"""A run with groups, schedules and missing gradients, to be compared with torch's AdamW by the bit."""

import torch

from tests.support.stepping import make_params, set_grads

OFF = {"use_lora_muon": False, "use_cautious": False, "state": "fp32", "decay_roles": "all"}


def run(make, steps=200, dtype=torch.float32):
    params = make_params(dtype)
    tensors = list(params.values())
    groups = [
        {"params": tensors[:5]},
        {"params": tensors[5:9], "lr": 3e-3},
        {"params": tensors[9:], "weight_decay": 0.1},
    ]
    optimizer = make(groups)
    scales = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = scale * (1 + step % 7) / 7
        set_grads(params, step)
        for index, param in enumerate(tensors):
            if (step + index) % 5 == 0:
                param.grad = None
        optimizer.step()
    return tensors
