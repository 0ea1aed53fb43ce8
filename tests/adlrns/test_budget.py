"""The controller on streams: shuffled, easy first, hard first, and harder than was calibrated for."""

import math

import pytest
import torch

from hina_kohya.adlrns import BudgetManager

BATCH = 128


def stream(order, n=13_000, seed=0):
    """Complexities: lognormal, heavy at the top as image patches are."""
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)).mul(0.8).exp()
    return {"shuffled": x, "easy first": x.sort().values, "hard first": x.sort(descending=True).values}[order]


def play(manager, x, harder=1.0, steps=8):
    """A planner of whole ranks, up to 4 times the mean's; as calibrated, it costs about the budget on the whole."""
    running = []
    for batch in x.split(BATCH):
        wanted = manager.budget * manager.factor * batch / float(stream("shuffled").mean()) * harder
        ranks = (wanted / manager.budget * steps).round().clamp(1, 4 * steps)
        cost = float(ranks.sum()) / steps * manager.budget
        manager.observe(cost, len(batch))
        running.append(manager.mean / manager.budget)
    return running


@pytest.mark.parametrize("order", ["shuffled", "easy first", "hard first"])
@pytest.mark.parametrize("harder", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("mode", ["cap", "spend"])
def test_the_mean_ends_at_most_two_percent_over(order, harder, mode):
    manager = BudgetManager(5e4, mode=mode)
    running = play(manager, stream(order), harder)
    assert running[-1] <= 1.02
    if order == "shuffled":
        assert max(running[3000 // BATCH :]) <= 1.05


@pytest.mark.slow
@pytest.mark.parametrize("harder", [0.5, 1.0, 1.5])
def test_spend_reaches_the_budget_and_cap_never_plans_for_more(harder):
    spend, cap = BudgetManager(5e4, mode="spend"), BudgetManager(5e4)
    assert play(spend, stream("shuffled"), harder)[-1] == pytest.approx(1, abs=0.02)
    factors = []
    for batch in stream("shuffled").split(BATCH):
        factors.append(cap.factor)
        play(cap, batch, harder)
    assert max(factors) <= 1
    assert cap.mean / 5e4 == pytest.approx(min(harder, 1), abs=0.06)


def test_it_never_starves_and_recovers():
    manager = BudgetManager(1.0, least=0.1)
    for _ in range(200):
        manager.observe(50.0 * BATCH, BATCH)
    assert manager.factor == pytest.approx(0.1)
    for _ in range(2_000):
        manager.observe(0.0, 8 * BATCH)
    assert manager.factor == pytest.approx(1.0)


def test_the_mean_is_over_samples_and_empty_batches_do_not_count():
    manager = BudgetManager(2.0, "ms")
    assert math.isnan(manager.mean)
    manager.observe(0.0, 0)
    manager.observe(9.0, 3)
    manager.observe(1.0, 1)
    assert manager.mean == 2.5
    manager.reset()
    assert manager.factor == 1
    assert manager.samples == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: BudgetManager(0.0), "budget = 0.0 must be above 0"),
        (lambda: BudgetManager(math.nan), "budget = nan"),
        (lambda: BudgetManager(1.0, "J"), "unit = 'J'"),
        (lambda: BudgetManager(1.0, mode="save"), "mode = 'save'"),
        (lambda: BudgetManager(1.0, least=0.0), "least = 0.0"),
        (lambda: BudgetManager(1.0, "mJ").observe(None, 4), "cost = None mJ of 4 samples is no measurement"),
        (lambda: BudgetManager(1.0).observe(math.nan, 4), "cost = nan"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
