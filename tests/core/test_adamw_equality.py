"""With every technique off, the engine is torch.optim.AdamW, bit for bit."""

import pytest
import torch

from hina_kohya import HinaAdamW
from tests.conftest import make_params, set_grads

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


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.95)])
def test_equals_torch_bit_for_bit(foreach, betas):
    mine = run(lambda groups: HinaAdamW(groups, lr=1e-3, betas=betas, **OFF))
    torchs = run(lambda groups: torch.optim.AdamW(groups, lr=1e-3, betas=betas, foreach=foreach))
    for a, b in zip(mine, torchs, strict=True):
        assert torch.equal(a, b)


def test_float64_equals_torch():
    """Not by the bit: torch raises the betas to the power of the step with Python's pow, here with torch's."""
    mine = run(lambda groups: HinaAdamW(groups, lr=1e-3, **OFF), steps=50, dtype=torch.float64)
    torchs = run(lambda groups: torch.optim.AdamW(groups, lr=1e-3), steps=50, dtype=torch.float64)
    for a, b in zip(mine, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_named_parameters_change_nothing_but_roles():
    """Roles decide what decays; asked to decay all, names change no bit."""
    named, plain = make_params(), make_params()
    with_names = HinaAdamW(named.items(), lr=1e-2, **OFF)
    without = HinaAdamW(plain.values(), lr=1e-2, **OFF)
    for step in range(20):
        set_grads(named, step)
        set_grads(plain, step)
        with_names.step()
        without.step()
    for a, b in zip(named.values(), plain.values(), strict=True):
        assert torch.equal(a, b)
