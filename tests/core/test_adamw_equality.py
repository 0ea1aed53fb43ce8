"""With every technique off, the engine is torch.optim.AdamW, bit for bit."""

import pytest
import torch

from hina_kohya import HinaAdamW
from tests.support.adamw import OFF, run
from tests.support.stepping import make_params, set_grads


@pytest.mark.slow
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
