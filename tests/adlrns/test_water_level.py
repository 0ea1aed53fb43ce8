"""The water level against brute force, and what an allocation promises."""

import itertools
import math

import pytest
import torch

from hina_kohya.adlrns.water_level import allocate, isotonic, nested, prefixes


def case(seed, states=2, layers=2, directions=3):
    random = torch.Generator().manual_seed(seed)
    gain = torch.randn(states, layers, directions, generator=random, dtype=torch.float64)
    cost = torch.rand(layers, generator=random, dtype=torch.float64) + 0.5
    share = torch.rand(states, generator=random, dtype=torch.float64) + 0.1
    return gain, cost, share / share.sum()


def total(mask, gain, cost, share):
    """(gain, cost), means over states"""
    mask = mask.double()
    return (
        float((mask * gain * share[:, None, None]).sum()),
        float((mask * cost[None, :, None] * share[:, None, None]).sum()),
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [0.3, 1.0, 2.0])
def test_nothing_of_the_same_cost_gains_more(seed, budget):
    gain, cost, share = case(seed)
    found = allocate(gain, cost, share, budget)
    won, spent = total(found.kept, gain, cost, share)
    assert spent == pytest.approx(found.cost)
    assert found.cost <= budget
    for bits in itertools.product((False, True), repeat=gain.numel()):
        other, price = total(torch.tensor(bits).view(gain.shape), gain, cost, share)
        if price <= spent + 1e-12:
            assert other <= won + 1e-12


@pytest.mark.parametrize("spend", [False, True])
def test_more_budget_never_takes_a_direction_away(spend):
    gain, cost, share = case(0, 3, 4, 6)
    last = torch.zeros_like(gain, dtype=torch.bool)
    for budget in torch.linspace(0.1, 40, 60).tolist():
        found = allocate(gain, cost, share, budget, spend=spend)
        assert (found.kept | ~last).all()
        last = found.kept
    assert last.equal(torch.ones_like(last) if spend else gain > 0)


def test_the_best_of_each_state_and_layer_are_always_kept():
    gain, cost, share = case(1, 3, 4, 6)
    least = float(2 * cost.sum())
    found = allocate(gain, cost, share, least + 1e-9, r_min=2)
    assert (found.ranks == 2).all()
    kept = gain.masked_fill(~found.kept, -math.inf).topk(2, -1).values
    assert kept.equal(gain.topk(2, -1).values)
    with pytest.raises(ValueError, match=rf"budget = {least - 0.1:g} is below {least:g}, the cost of r_min = 2"):
        allocate(gain, cost, share, least - 0.1, r_min=2)


def test_kept_sets_of_nested_gains_are_prefixes():
    gain, cost, share = case(2, 4, 3, 8)
    for budget in (1.0, 3.0, 8.0):
        kept = allocate(nested(gain), cost, share, budget).kept.long()
        assert (kept.diff(dim=-1) <= 0).all()


def test_layers_may_have_fewer_directions():
    gain, cost, share = case(3)
    gain[:, 0, 1:] = -math.inf
    assert not allocate(gain, cost, share, 100, r_min=3, spend=True).kept[:, 0, 1:].any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda g, c, s: (g.index_fill(0, torch.tensor([0]), math.nan), c, s), "NaN"),
        (lambda g, c, s: (g, -c, s), "positive"),
        (lambda g, c, s: (g, c, s * 0), "positive"),
        (lambda g, c, s: (g[0], c, s), "shapes"),
    ],
)
def test_bad_input_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        allocate(*change(*case(0)), 1.0)


def test_isotonic_sums_are_the_upper_hull_of_the_gains_sums():
    random = torch.Generator().manual_seed(0)
    gain = torch.rand(4, 12, generator=random, dtype=torch.float64)
    smooth = isotonic(gain)
    assert (smooth.diff(dim=1) <= 1e-12).all()
    sums, hull = ([0.0, *row] for row in (gain[0].cumsum(0).tolist(), smooth[0].cumsum(0).tolist()))
    for place in range(13):
        chords = [
            sums[a] + (sums[b] - sums[a]) * (place - a) / (b - a)
            for a in range(place + 1)
            for b in range(place, 13)
            if a < b
        ]
        assert hull[place] == pytest.approx(max(chords))
    assert isotonic(torch.tensor([[3.0, 2.0, 2.0, 1.0]])).tolist() == [[3.0, 2.0, 2.0, 1.0]]


@pytest.mark.parametrize("seed", range(4))
def test_prefixes_spend_what_they_can(seed):
    """Rising gains are one block, which the water level alone takes whole or not at all."""
    random = torch.Generator().manual_seed(seed)
    gain = torch.arange(1, 21, dtype=torch.float64).expand(3, -1) * torch.rand(3, 1, generator=random).double()
    share = torch.rand(3, generator=random, dtype=torch.float64) + 0.1
    share /= share.sum()
    last = torch.zeros(3)
    for budget in torch.linspace(2, 22, 30).tolist():
        ranks = prefixes(gain, 1.0, share, budget, r_min=2)
        spent = float((ranks * share).sum())
        assert spent <= budget
        assert spent > budget - float(share.max()) or (ranks == 20).all()
        assert (ranks >= last).all()
        last = ranks
    assert (last == 20).all()
    with pytest.raises(ValueError, match="budget = 1 is below 2, the cost of r_min = 2"):
        prefixes(gain, 1.0, share, 1.0, r_min=2)
