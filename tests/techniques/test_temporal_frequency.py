"""The temporal damping through the real optimizer: against its oracle, and what a spectrum of cosines promises."""

from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.registry import build
from tests.oracles.tam import TAM, Torque
from tests.oracles.temporal_frequency import Flicker, high_share
from tests.support import promises
from tests.support.adam_chain import optimizer, run, starts
from tests.support.chains import STATES
from tests.support.oracle_runs import DECAY, MATRICES, close, gradients, rate
from tests.support.signals import signal
from tests.support.stepping import make_params, train

SHAPES = MATRICES | {"one": (1,), "column.weight": (6, 1)}
OPTIONS = [{}, {"window": 4}, {"window": 7}, {"preserve": 0.0}, {"preserve": 0.5, "penalty": 1.0}]


def around(make):
    """AdamW with a damping, as TAM's oracle composes it."""
    oracle = TAM(weight_decay=DECAY)
    oracle.torque = make()
    return oracle


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_oracle(options):
    grads = gradients(SHAPES, SHAPES, 40)
    for by_name in grads[:2]:
        by_name["column.weight"] *= 0
    final, _ = run("temporal_frequency", SHAPES, grads, **options)
    for name, p in starts(SHAPES).items():
        each = around(lambda: Flicker(**options))
        for step, by_name in enumerate(grads):
            p = each.step(p, by_name[name], rate(step))
        close(final[name], p)


def test_before_and_after_tam():
    """A scalar damping does not turn the gradient, so TAM sees the same cosine whichever comes first."""

    class Both:
        def __init__(self):
            self.torque, self.flicker = Torque(), Flicker()

        def __call__(self, m, g):
            return self.torque(m, g) * self.flicker(m, g)

    grads = gradients(MATRICES, MATRICES, 30)
    final, _ = run("temporal_frequency", MATRICES, grads, others=["tam"])
    for name, p in starts(MATRICES).items():
        each = around(Both)
        for step, by_name in enumerate(grads):
            p = each.step(p, by_name[name], rate(step))
        close(final[name], p)


@pytest.mark.parametrize("window", [4, 5, 16, 17])
@pytest.mark.parametrize("preserve", [0.0, 0.5, 0.8])
def test_the_oracle_against_numpys_transform(window, preserve):
    c = np.random.default_rng(1).normal(size=window)
    energy = np.abs(np.fft.fft(c)) ** 2
    np.testing.assert_allclose(energy.sum(), window * (c**2).sum())  # Parseval
    f = np.abs(np.fft.fftfreq(window))
    np.testing.assert_allclose(high_share(c, preserve), energy[f / f.max() > preserve + 1e-12].sum() / energy.sum())


def entered(cosines, window=16, **options):
    """What is left of a gradient whose angles to the momentum were these."""
    technique = build("temporal_frequency", window=window, **options)
    state = {"cosines": torch.zeros(1, 1, window, dtype=torch.float64)}
    momentum = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 2)
    left = []
    for step, c in enumerate(cosines, 1):
        g = torch.tensor([c, (1 - c * c) ** 0.5], dtype=torch.float64).view(1, 1, 2)
        s = signal(n=1, m=1, k=2, step=torch.full((1, 1, 1), float(step), dtype=torch.float64))
        out = technique.enter(s, momentum if c else 0 * momentum, g, state)
        left.append((out / g)[0, 0, 1].item() if c**2 < 1 else (out / g)[0, 0, 0].item())
    return left


@pytest.mark.parametrize("window", [4, 16, 30])
def test_alternating_is_all_noise_and_constant_is_none(window):
    steps = 2 * window
    flips = entered([(-1.0) ** t for t in range(steps)], window, penalty=0.3)
    assert flips[:window] == [1.0] * window  # steady until the window is full
    assert flips[window:] == pytest.approx([0.7] * window)
    assert entered([(-1.0) ** t for t in range(steps)], window, penalty=1.0)[-1] == pytest.approx(0.0, abs=1e-12)
    for c in (1.0, 0.3, -1.0, -0.3, 0.0):
        assert entered([c] * steps, window, penalty=1.0) == pytest.approx([1.0] * steps)


def test_slow_waves_pass():
    waves = [0.5 * np.cos(2 * np.pi * t / 8) for t in range(1, 48)]  # a quarter of the highest frequency
    assert entered(waves, penalty=1.0)[-1] == pytest.approx(1.0)
    assert entered(waves, penalty=1.0, preserve=0.2)[-1] == pytest.approx(0.0, abs=1e-9)


def test_white_noise_loses_the_share_of_its_bins():
    """w = 16: 7/8 and 1 lie above 0.8; the bin of the highest counts once, the other twice: 3 of 16."""
    rng = np.random.default_rng(0)
    shares = [high_share(rng.normal(size=16)) for _ in range(1000)]
    assert np.mean(shares) == pytest.approx(3 / 16, rel=0.05)


def test_scale_and_order_do_not_matter():
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(7, generator=generator), torch.randperm(5, generator=generator)
    technique = build("temporal_frequency", window=4, penalty=1.0)
    kinds = [lambda x: x, lambda x: x * 2.0**-50, lambda x: x[:, rows][:, :, columns]]
    results = []
    for change in kinds:
        state, generator = {"cosines": torch.zeros(2, 1, 4, dtype=torch.float64)}, torch.Generator().manual_seed(4)
        for step in range(1, 9):
            m, g = (torch.randn(2, 7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
            s = signal(n=2, step=torch.full((2, 1, 1), float(step), dtype=torch.float64))
            out = technique.enter(s, change(m), change(g), state)
        results.append(out)
        assert (out.norm() < 0.9 * change(g).norm()).all()
    torch.testing.assert_close(results[1], results[0] * 2.0**-50, rtol=1e-13, atol=0)
    torch.testing.assert_close(results[2], results[0][:, rows][:, :, columns], rtol=1e-12, atol=0)


@pytest.mark.parametrize("options", [{"penalty": 0.0}, {"penalty": 0.5}, {"preserve": 0.3}, {"window": 8}], ids=str)
def test_every_option_changes_the_update(options):
    shapes = {"head.weight": (7, 5)}
    grads = gradients(shapes, shapes, 24)
    finals = [run("temporal_frequency", shapes, grads, **chosen)[0]["head.weight"] for chosen in ({}, options)]
    assert not np.array_equal(*finals)


@pytest.mark.slow
@promises.dtypes
def test_resume_is_exact(dtype):
    for state in STATES:
        make = partial(optimizer, name="temporal_frequency", state=state, decay=DECAY, window=5)
        promises.resumes_exactly(make, make_params(dtype), steps=7)


@pytest.mark.slow
def test_bad_neighbours_zeros_and_cost(monkeypatch):
    make = partial(optimizer, name="temporal_frequency", window=4)
    for state in STATES:
        promises.bears_zeros(partial(make, state=state))
    strong = partial(make, penalty=1.0)
    promises.spares_neighbours(strong, {3: torch.nan}, victims="lora_unet_a.lora_down", steps=8)
    promises.operations_go_with_shapes(strong, sizes=(2, 4))
    promises.chunks_change_no_bit(monkeypatch, strong, steps=8)


@pytest.mark.parametrize("window", [4, 16])
def test_state_is_one_window(window):
    params = make_params()
    mine = optimizer(params, "temporal_frequency", "8bit", window=window)
    train(mine, params, 2)
    for param in params.values():
        kept = mine.state[param]["temporal_frequency.cosines"]
        assert kept.numel() == window
        assert kept.dtype == torch.float32


@pytest.mark.parametrize("options", [{"preserve": 1.0}, {"penalty": 1.1}, {"window": 3}, {"window": 257}], ids=str)
def test_bounds(options):
    with pytest.raises(ValueError, match="is outside"):
        build("temporal_frequency", **options)
