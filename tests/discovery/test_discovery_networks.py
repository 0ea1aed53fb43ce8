"""Discovery on real LyCORIS networks on the embedded model, names hidden, parameters shuffled: equal to the names."""

import pytest

pytest.importorskip("diffusers")

from benchmarks.discovery import LOOKS, NETWORKS, Run, compare, truth
from hina_kohya.discovery.search import discover, observe

STEPS = 5


def agreement(run, **how):
    """Counts at every step from the third, each with up to LOOKS looks."""
    expected, looks, result = truth(run.members), [], []
    for step, seen in enumerate(run.steps(STEPS, **how), 1):
        if step == 1:  # one factor of each product is zero
            assert discover(seen.params, seen.grads) == []
        if step >= 3:
            result.append(compare(discover(seen.params, seen.grads, looks), expected))
        looks = [*looks, observe(seen.params, seen.grads)][1 - LOOKS :]
    assert all(counts["true"] > 10 for counts in result)
    return result


def assert_exact(run, **how):
    for counts in agreement(run, **how):
        assert (counts["false"], counts["missed"]) == (0, 0)


def assert_nearly(run, **how):
    """In each single look at least 99 % of what is said is true, and of what is true is said."""
    for counts in agreement(run, **how):
        assert counts["false"] <= 0.01 * counts["found"]
        assert counts["missed"] <= 0.01 * counts["true"]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_in_fp32_all_are_found_and_no_other(network):
    assert_exact(Run(network))


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("full_bf16", [False, True], ids=["autocast", "full_bf16"])
def test_in_bf16_nearly_all_are_found_and_hardly_any_other(network, full_bf16):
    assert_nearly(Run(network, autocast=True, full_bf16=full_bf16))


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lora", "lokr", "loha"])
def test_accumulated_gradients_in_bf16(network):
    assert_nearly(Run(network, autocast=True, full_bf16=True), accumulate=4, batch=2)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 16])
def test_other_ranks(dim):
    assert_exact(Run("lora", autocast=True, dim=dim))


@pytest.mark.slow
def test_rank_dropout_does_not_hide_a_pair():
    assert_exact(Run("lora", more=["rank_dropout=0.3"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "seed", "how"),
    [
        ("locon", 12, {}),
        ("locon-tucker", 21, {"autocast": True, "full_bf16": True}),
        ("locon-tucker", 22, {"autocast": True}),
        ("loha", 23, {"autocast": True, "full_bf16": True}),
    ],
)
def test_a_coincidence_of_scalars_is_no_relationship(network, seed, how):
    """Two products that have nothing to do with each other, and whose scalars are within 2 % at some step."""
    assert_exact(Run(network, seed=seed, **how))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "seed", "full_bf16"),
    [
        ("glora-conv", 41, False),  # a signature that is a thirtieth of its terms
        ("lokr-conv", 45, False),  # a diagonal that is a hundredth of its signature
        ("lokr-full", 43, True),  # two modules whose sums are near at two steps
    ],
)
def test_sums_that_cancel_hide_no_relationship(network, seed, full_bf16):
    assert_exact(Run(network, autocast=True, full_bf16=full_bf16, seed=seed))
