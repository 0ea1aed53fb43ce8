"""The Muon oracle against torch.optim.Muon and pytorch_optimizer, made to iterate in float64 instead of bfloat16."""

import numpy as np
import pytest
import torch

from tests.support.official_muon import SHAPES, drift

from . import muon
from .muon import Muon

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture
def torch_muon(monkeypatch):
    """torch.optim.Muon (torch >= 2.9) with the cast to bfloat16 taken out."""
    official = getattr(torch.optim, "Muon", None)
    if official is None:
        pytest.skip("this torch has no Muon")
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    monkeypatch.setattr(  # torch >= 2.15
        torch.Tensor,
        "to",
        lambda self, *words, **more: self.clone() if more.get("dtype") is torch.bfloat16 else to(self, *words, **more),
    )
    return official


@each_shape
@pytest.mark.parametrize("nesterov", [True, False])
def test_torch(shape, nesterov, torch_muon):
    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    assert drift(torch_muon, Muon(0.9, nesterov, weight_decay=0.1), shape, **options) <= 1e-12


@each_shape
def test_torch_at_its_defaults_but_for_the_scale(shape, torch_muon):
    options = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 3}
    assert drift(torch_muon, Muon(0.95, rounds=3), shape, **options) <= 1e-12


@each_shape
def test_torch_in_its_own_precision_is_near(shape):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    options = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    assert drift(torch.optim.Muon, Muon(0.95, weight_decay=0.1), shape, **options) <= 0.05


@each_shape
@pytest.mark.parametrize("rounds", [1, 5])
def test_the_iteration_of_pytorch_optimizer(shape, rounds):
    matrix = pytest.importorskip("pytorch_optimizer.optimizer.utils.matrix")
    official = getattr(matrix, "zero_power_via_newton_schulz_5", None)
    if official is None:
        pytest.skip("this pytorch_optimizer has another name for it")
    x = np.random.default_rng(0).standard_normal(shape)
    theirs = official(torch.from_numpy(x), num_steps=rounds, dtype=torch.float64).numpy()
    np.testing.assert_allclose(muon.newton_schulz(x, rounds), theirs, rtol=0, atol=1e-12)


def test_the_iteration_is_its_polynomial_on_the_singular_values():
    rng = np.random.default_rng(0)
    for shape in (*SHAPES, (40, 3)):
        x = rng.standard_normal(shape)
        np.testing.assert_allclose(muon.newton_schulz(x), muon.svd(x), rtol=0, atol=1e-12)
        np.testing.assert_allclose(muon.newton_schulz(x.T).T, muon.newton_schulz(x), rtol=0, atol=1e-12)


def test_the_band():
    s = np.geomspace(*muon.RANGE, 200_001)
    reached = muon.on_singular_value(s)
    assert muon.BAND[0] <= reached.min() <= muon.BAND[0] + 0.01
    assert muon.BAND[1] - 0.01 <= reached.max() <= muon.BAND[1]
    assert muon.on_singular_value(muon.RANGE[0] / 2) < muon.BAND[0]


def test_zero():
    oracle, zero = Muon(), np.zeros((3, 4))
    np.testing.assert_array_equal(oracle.step(zero + 1, zero, 0.1), zero + 1)
