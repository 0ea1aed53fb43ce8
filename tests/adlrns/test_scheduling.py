"""What every kind of schedule promises."""

import math

import pytest
import torch

from hina_kohya.adlrns import RankScheduler

KINDS = ("energy_aware", "linear", "adaptive")


def case(cells=5, r=24, seed=0):
    random = torch.Generator().manual_seed(seed)
    decay = torch.arange(r, dtype=torch.float64).mul(-0.2).exp()
    level = torch.arange(cells, dtype=torch.float64).exp()[:, None]
    share = torch.rand(cells, generator=random, dtype=torch.float64) + 0.1
    return level * decay * (0.5 + torch.rand(cells, r, generator=random, dtype=torch.float64)), share / share.sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [41.0, 80.0, 150.0, 1e9])
def test_the_mean_cost_is_within_the_budget(kind, budget):
    gain, share = case()
    ranks = RankScheduler(kind, r_min=4, r_max=24)(gain, 10.0, share, budget)
    assert (ranks >= 4).all()
    assert (ranks <= 24).all()
    assert float((ranks * share).sum()) * 10 <= budget + 1e-9
    most = 240 if kind != "linear" else 10 * float((torch.tensor([4, 9, 14, 19, 24]) * share).sum())
    assert float((ranks * share).sum()) * 10 > min(budget, most) * 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_never_fall_as_the_budget_grows(kind):
    gain, share = case()
    last = torch.zeros(5)
    for budget in torch.linspace(40, 250, 50).tolist():
        ranks = RankScheduler(kind, 4, 24)(gain, 10.0, share, budget)
        assert (ranks >= last).all()
        last = ranks
    assert last.tolist() == ([4, 9, 14, 19, 24] if kind == "linear" else [24] * 5)


def test_a_cell_that_gains_more_gets_more():
    gain = torch.tensor([1.0, 4.0, 2.0]).double()[:, None] * torch.arange(12).mul(-0.3).exp().double()
    ranks = RankScheduler("energy_aware", 0, 12)(gain, 1.0, torch.ones(3), 4.0).tolist()
    assert ranks[0] < ranks[2] < ranks[1]


def test_energy_aware_buys_the_most_gain_of_all_prefixes():
    gain, share = case(3, 5)
    gain = gain.sort(descending=True).values
    ranks = RankScheduler("energy_aware", 1, 5)(gain, 1.0, share, 2.5)
    total = lambda r: sum(float(share[k] * gain[k, : r[k]].sum()) for k in range(3))
    price = lambda r: sum(float(share[k]) * r[k] for k in range(3))
    for other in torch.cartesian_prod(*[torch.arange(1, 6)] * 3).tolist():
        if price(other) <= price(ranks.tolist()) + 1e-12:
            assert total(other) <= total(ranks.tolist()) + 1e-12


def test_linear_steps_are_even():
    assert RankScheduler("linear", 4, 64)(torch.zeros(5, 64), 1.0, torch.ones(5), 1e9).tolist() == [4, 19, 34, 49, 64]
    assert RankScheduler("linear", 4, 64)(torch.zeros(1, 64), 1.0, torch.ones(1), 10.0).tolist() == [10]


def test_gains_follow_the_training_where_it_saw_something():
    old, new = torch.tensor([1.0, 2.0]), torch.tensor([3.0, math.nan])
    assert RankScheduler("adaptive", 1, 2, momentum=0.75).blend(old, new).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: RankScheduler("cosine"), "scheduler = 'cosine' is unknown"),
        (lambda: RankScheduler("linear", 8, 4), "r_min = 8, r_max = 4"),
        (lambda: RankScheduler("linear", momentum=1.0), "momentum = 1.0"),
        (lambda: RankScheduler("linear", 4, 24)(*case()[:1], 10.0, case()[1], 39.0), "below 40, the cost of r_min = 4"),
        (
            lambda: RankScheduler("energy_aware", 4, 24)(*case()[:1], 10.0, case()[1], 39.0),
            "below 40, the cost of r_min",
        ),
        (lambda: RankScheduler("linear", 4, 24)(*case()[:1], 10.0, case()[1], 0.0), "budget = 0.0 must be above 0"),
        (lambda: RankScheduler("energy_aware", 4, 24)(case()[0] * math.nan, 1.0, case()[1], 9.0), "NaN"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
