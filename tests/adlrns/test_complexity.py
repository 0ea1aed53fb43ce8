"""Scores, cells and gates."""

import math
import subprocess
import sys

import pytest
import torch

from hina_kohya.adlrns import GateNetwork, LightweightScorer
from hina_kohya.adlrns.layer.complexity import cells_of, log_deviation


def samples(n=500, features=12, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, features, generator=random) * torch.randn(n, 1, generator=random).exp() + 3


@pytest.mark.parametrize("shape", [(40,), (4, 10), (2, 5, 4)])
def test_the_score_is_the_variance(shape):
    x = samples(features=40).view(-1, *shape)
    expected = x.double().flatten(1).var(1, correction=0)
    torch.testing.assert_close(LightweightScorer()(x).double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(12,), (1024,), (65536,), (77, 768), (4096, 320), (3, 256, 256), (320, 64, 64)])
@pytest.mark.parametrize("contrast", [1e-6, 0.05])
def test_of_samples_with_a_large_mean_it_is_above_zero_and_near_the_variance(contrast, shape):
    random = torch.Generator().manual_seed(0)
    height = torch.rand(12, 1, generator=random) * 20 - 10
    x = height * (1 + contrast * torch.randn(12, math.prod(shape), generator=random))
    score, mean_square = LightweightScorer()(x.view(-1, *shape)).double(), x.double().square().mean(1)
    assert (score > 0).all()
    error = (score - x.double().var(1, correction=0)).abs()
    assert (error <= (2e-6 + 8e-9 * max(shape)) * mean_square).all()


@pytest.mark.parametrize("shape", [(65536,), (77, 768), (16, 128, 128)])
def test_it_is_the_same_however_the_samples_lie_in_memory(shape):
    random = torch.Generator().manual_seed(0)
    x = torch.rand(24, *(1,) * len(shape), generator=random) * (1 + 1e-6 * torch.randn(24, *shape, generator=random))
    turned = x.movedim(0, -1).contiguous().movedim(-1, 0)
    assert not turned.is_contiguous()
    assert LightweightScorer()(turned).equal(LightweightScorer()(x))


def test_log_deviation_is_the_log_of_the_standard_deviation():
    x = samples(features=40) - 3
    expected = x.double().std(1, correction=0).log()
    torch.testing.assert_close(log_deviation(LightweightScorer()(x)).double(), expected, atol=1e-3, rtol=0)
    assert log_deviation(torch.tensor([0.0, -1e-9])).isfinite().all()  # rounding may leave less than nothing


def test_cells_are_quantiles():
    scorer = LightweightScorer(cells=5)
    assert (scorer.cell(samples()) == 0).all()  # not fitted
    scorer.fit(samples())
    cell = scorer.cell(samples())
    assert torch.bincount(cell).tolist() == [100] * 5
    order = scorer(samples()).argsort()
    assert (cell[order].diff() >= 0).all()


def test_a_sample_falls_in_the_same_cell_alone_and_in_any_company():
    scorer = LightweightScorer(12, hidden_dim=4, cells=5)
    torch.nn.init.normal_(scorer.learned[2].weight)
    scorer.fit(samples())
    x = samples(seed=1)[:50]
    together = scorer.cell(x)
    assert together.equal(torch.cat([scorer.cell(row[None]) for row in x]))
    assert scorer.cell(x.flip(0)).equal(together.flip(0))


def test_constant_samples_are_the_simplest_and_broken_ones_have_no_cell():
    scorer = LightweightScorer(cells=3)
    scorer.fit(samples())
    x = samples(n=4)
    x[0] = 7
    x[1, 2], x[2, 3], x[3, 0] = math.nan, math.inf, -math.inf
    before = x.clone()
    assert scorer.cell(x).tolist() == [0, 3, 3, 3]
    assert scorer(x)[1:].tolist() == [math.inf] * 3
    learned = LightweightScorer(12, hidden_dim=4)
    torch.nn.init.normal_(learned.learned[2].weight)
    assert learned(x)[1:].tolist() == [math.inf] * 3
    assert float(scorer(x[:1])) == pytest.approx(49e-6, rel=0.3)
    assert x.nan_to_num(1.25).equal(before.nan_to_num(1.25))  # never cleaned up


@pytest.mark.slow
def test_a_default_device_at_its_import_does_not_matter():
    code = """
import torch
with torch.device("meta"):
    from hina_kohya.adlrns import LightweightScorer
assert LightweightScorer()(torch.randn(4, 8)).isfinite().all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_samples_of_no_tokens_are_the_simplest():
    scorer = LightweightScorer(cells=3)
    scorer.fit(samples())
    assert scorer.cell(torch.zeros(2, 0, 12)).tolist() == [0, 0]


def test_a_scorer_has_no_parameters_or_ones_that_get_a_gradient():
    assert not list(LightweightScorer().parameters())
    x = samples()
    scorer, gate = LightweightScorer(12, hidden_dim=4), GateNetwork(4)
    torch.nn.init.normal_(scorer.learned[2].weight)
    gate.fit(scorer(x))
    gate(scorer(x)).sum().backward()
    for parameter in (*scorer.parameters(), *gate.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("f", [-1e4, 1e4])
def test_a_learned_score_stays_finite_whatever_its_network_says(f):
    scorer, gate, x = LightweightScorer(12, hidden_dim=4), GateNetwork(4), samples()
    gate.fit(scorer(x))
    torch.nn.init.constant_(scorer.learned[2].bias, f)
    score = scorer(x)
    assert score.isfinite().all()
    assert (score > 0).all()
    gate(score).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in scorer.parameters())


def test_a_new_learned_score_starts_at_the_plain_one():
    assert LightweightScorer(12, hidden_dim=4)(samples()).equal(LightweightScorer()(samples()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_edges_are_the_same_in_half_precision(dtype, scale):
    x = samples() * scale
    scorer, gate = LightweightScorer(cells=5), GateNetwork(5)
    score = scorer.fit(x)
    gate.fit(score)
    cell, edges = scorer.cell(x), gate.edges()
    assert scorer.to(dtype).cell(x).equal(cell)
    assert scorer.edges.dtype == torch.float32
    assert scorer.to("meta").edges.is_meta
    # The gates' are parameters, which do lose bits, but as logs
    torch.testing.assert_close(gate.to(dtype).edges().log(), edges.log(), rtol=0, atol=0.1)
    assert gate(score).isfinite().all()


def test_gates_open_in_order_and_agree_with_the_cells():
    gate = GateNetwork(5, temperature=0.1)
    score = LightweightScorer()(samples())
    gate.fit(score)
    assert torch.bincount(cells_of(score, gate.edges())).tolist() == pytest.approx([100] * 5, abs=2)
    soft = gate(score)
    assert (soft[:, 0] == 1).all()
    assert (soft.diff(dim=1) <= 0).all()
    clear = ((score[:, None] - gate.edges()).abs() > 1e-4).all(1)
    assert ((soft > 0.5).sum(1) - 1)[clear].equal(cells_of(score, gate.edges())[clear])


def test_gates_are_fitted_to_sound_samples_only():
    gate, broken = GateNetwork(5), GateNetwork(5)
    score = LightweightScorer()(samples())
    gate.fit(score)
    broken.fit(torch.cat([torch.full((300,), math.inf), score]))
    assert broken.edges().equal(gate.edges())
    assert broken.steps.isfinite().all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: LightweightScorer(cells=0), "cells = 0 must be at least 1"),
        (lambda: LightweightScorer(hidden_dim=4), "in_features = 0 must be given"),
        (lambda: LightweightScorer()(torch.ones(3, 4, dtype=torch.long)), "int64"),
        (lambda: LightweightScorer()(torch.ones(3)), r"\(3,\)"),
        (lambda: LightweightScorer().fit(torch.full((3, 4), math.nan)), "no sample has a finite score"),
        (lambda: GateNetwork(1), "num_blocks = 1"),
        (lambda: GateNetwork(2).fit(torch.full((3,), math.inf)), "no sample has a finite score"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
