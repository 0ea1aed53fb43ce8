"""The NorMuon oracle against pytorch_optimizer's, made to iterate in float64 instead of bfloat16."""

import numpy as np
import pytest
import torch

from tests.support.official_muon import SHAPES, drift

from .normuon import NorMuon


@pytest.fixture
def official(monkeypatch):
    module = pytest.importorskip("pytorch_optimizer.optimizer.muon.normuon")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    iterate = module.zero_power_via_newton_schulz_5
    base = pytest.importorskip("pytorch_optimizer.optimizer.muon.base")
    for place in (module, base):
        if hasattr(place, "zero_power_via_newton_schulz_5"):
            monkeypatch.setattr(
                place, "zero_power_via_newton_schulz_5", lambda *a, **k: iterate(*a, **{**k, "dtype": torch.float64})
            )

    def make(params, **options):
        groups = [{"params": params, "use_muon": True}]
        return module.NorMuon(groups, update_scale="match_rms", foreach=False, **options)

    return make


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("nesterov", [True, False])
def test_pytorch_optimizer(shape, nesterov, official):
    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1, "beta2": 0.8}
    oracle = NorMuon(0.8, beta=0.9, nesterov=nesterov, weight_decay=0.1)
    assert drift(official, oracle, shape, **options) <= 1e-7  # theirs has an epsilon under both norms


def test_a_wide_matrix_is_its_tall_transpose():
    rng = np.random.default_rng(0)
    tall, wide = NorMuon(), NorMuon(by_row=False)
    for _ in range(20):
        g = rng.standard_normal((7, 3)) * [[1], [9], [1], [1], [0.1], [1], [1]]
        np.testing.assert_allclose(tall.direction(g), wide.direction(g.T).T, rtol=0, atol=1e-12)


def test_neurons_move_alike_in_the_long_run():
    """What it is for: rows that Muon moves little move as much as the others."""
    rng, size = np.random.default_rng(0), np.array([[1.0], [5.0], [1.0], [0.2], [1.0], [1.0]])
    moved = {}
    for oracle in (NorMuon(), NorMuon.__mro__[1]()):
        steps = [oracle.direction(size * rng.standard_normal((6, 2))) for _ in range(200)]
        rows = np.sqrt(np.mean(np.square(steps[100:]), axis=(0, 2)))
        moved[type(oracle).__name__] = rows.max() / rows.min()
    assert moved["NorMuon"] < 1.3
    assert moved["Muon"] > 3


def test_zero():
    oracle, zero = NorMuon(), np.zeros((3, 4))
    np.testing.assert_array_equal(oracle.step(zero + 1, zero, 0.1), zero + 1)
