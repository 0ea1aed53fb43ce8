"""The water level against every possible choice of ranks, on cases small enough to try them all."""

import dataclasses as dc
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.level import Spectrum, allocate, energy, keeping


def spectrum(values, cost, entry, least, steps):
    steps = tuple(sorted({*(rank for rank in steps if least < rank < len(values)), len(values)} - {least}))
    return Spectrum(torch.tensor(sorted(values, reverse=True), dtype=torch.float64), cost, entry, least, steps)


VALUES = st.lists(st.floats(0.01, 10), min_size=1, max_size=4)
STEPS = st.one_of(st.just({1, 2, 3}), st.sets(st.integers(1, 3)))
SPECTRA = st.lists(
    st.builds(spectrum, VALUES, st.integers(1, 9), st.integers(0, 9), st.integers(0, 1), STEPS), min_size=1, max_size=4
)


def cost(spectra, ranks):
    return sum(spectrum.bytes(rank) for spectrum, rank in zip(spectra, ranks, strict=True))


def choices(spectra):
    """Ranks that may be chosen."""
    return itertools.product(*((spectrum.least, *spectrum.steps) for spectrum in spectra))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(SPECTRA, st.floats(0, 1))
def test_nothing_of_the_level_s_own_cost_keeps_more(spectra, share):
    """Stopped where a block is bought whole, the level is the best there is at its own number of bytes."""
    ranks = keeping(spectra, max(share, 1e-9))
    if share and ranks != [len(spectrum.values) for spectrum in spectra]:
        best = max(energy(spectra, each) for each in choices(spectra) if cost(spectra, each) <= cost(spectra, ranks))
        assert energy(spectra, ranks) >= best - 1e-9


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(SPECTRA, st.integers(0, 200))
def test_a_budget_is_kept_and_lost_by_at_most_one_block(spectra, budget):
    budget += cost(spectra, [spectrum.least for spectrum in spectra])
    ranks = allocate(spectra, budget)
    assert cost(spectra, ranks) <= budget
    best = max(energy(spectra, each) for each in choices(spectra) if cost(spectra, each) <= budget)
    dearest = max(float(spectrum.values.square().sum()) for spectrum in spectra)
    total = sum(float(spectrum.values.square().sum()) for spectrum in spectra)
    assert energy(spectra, ranks) >= best - dearest / total - 1e-9
    for module, spectrum in enumerate(spectra):  # and what is left over buys nothing more
        if ranks[module] < len(spectrum.values):
            following = min(step for step in spectrum.steps if step > ranks[module])
            more = spectrum.bytes(following) - spectrum.bytes(ranks[module])
            assert cost(spectra, ranks) + more > budget


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(SPECTRA, st.floats(0.01, 1))
def test_keep_takes_the_fewest_bytes_to_within_one_block(spectra, share):
    ranks = keeping(spectra, share)
    assert energy(spectra, ranks) >= share - 1e-9
    fewest = min(cost(spectra, each) for each in choices(spectra) if energy(spectra, each) >= share - 1e-9)
    assert cost(spectra, ranks) <= fewest + max(spectrum.bytes(len(spectrum.values)) for spectrum in spectra)


@settings(max_examples=100, deadline=None)
@given(SPECTRA, st.integers(0, 200))
def test_any_rank_is_all_ranks_as_steps(spectra, budget):
    free = [dc.replace(spectrum, steps=()) for spectrum in spectra]
    every = [dc.replace(each, steps=tuple(range(each.least + 1, len(each.values) + 1))) for each in spectra]
    assert allocate(free, budget) == allocate(every, budget)


def test_energy_per_byte_decides_and_not_the_singular_value():
    wide, narrow = Spectrum(torch.tensor([3.0, 2.9]), 100), Spectrum(torch.tensor([2.0, 1.9]), 10)
    assert allocate([wide, narrow], 20) == [0, 2]
    assert allocate([wide, narrow], 120) == [1, 2]


def test_a_module_is_entered_for_all_that_it_holds():
    """Two directions pay for the names in the file together where one alone does not."""
    entered, other = Spectrum(torch.tensor([2.0, 2.0]), 10, entry=20), Spectrum(torch.tensor([1.6, 1.6]), 20)
    assert allocate([entered, other], 40) == [2, 0]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_outside_its_bounds(share):
    with pytest.raises(AdapterError, match="must be above 0 and at most 1"):
        keeping([Spectrum(torch.ones(1), 1)], share)
