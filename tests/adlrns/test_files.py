"""Tensors of a file: sorted, cut, weighted; and files that are not whole."""

import pytest
import torch

from hina_kohya.adlrns.adapter import files
from hina_kohya.adlrns.water_level import allocate

NAMES = ("lora_unet_a", "lora_unet_b", "lora_te_c")
SHAPES = {
    "lora_unet_a": ((6, 5), (5, 4), 3),
    "lora_unet_b": ((6, 4, 1, 1), (4, 2, 3, 3), 3),
    "lora_te_c": ((3, 5), (5, 7), 1),
}


def tensors(seed=0):
    random = torch.Generator().manual_seed(seed)
    made = {"lora_unet_n.w_norm": torch.ones(3)}
    for name, (up, down, states) in SHAPES.items():
        rank = down[0]
        kept = torch.rand(states, rank, generator=random) < 0.6
        kept[0, 0] = True
        made |= {
            f"{name}.lora_up.weight": torch.randn(up, generator=random, dtype=torch.float64),
            f"{name}.lora_down.weight": torch.randn(down, generator=random, dtype=torch.float64),
            f"{name}.alpha": torch.tensor(3.0),
            f"{name}.adlrns_kept": kept,
            f"{name}.adlrns_stats": torch.stack(
                [torch.randn(states, rank, generator=random), torch.rand(states, rank, generator=random)]
            ),
        }
    return made


def diff(held, name, keep=None):
    up, down = held[f"{name}.lora_up.weight"].flatten(1), held[f"{name}.lora_down.weight"].flatten(1)
    keep = torch.ones(len(down)) if keep is None else keep
    return (up * keep) @ down * float(held[f"{name}.alpha"]) / len(down)


def test_sorted_files_are_the_same_network():
    before = tensors()
    after = files.by_gain(before)
    assert after.keys() == before.keys()
    for name in NAMES:
        gain = after[f"{name}.adlrns_stats"][0].mean(0)
        assert (gain.diff() <= 0).all()
        for state in range(SHAPES[name][2]):
            torch.testing.assert_close(
                diff(after, name, after[f"{name}.adlrns_kept"][state]),
                diff(before, name, before[f"{name}.adlrns_kept"][state]),
            )
    assert after["lora_unet_n.w_norm"] is before["lora_unet_n.w_norm"]
    assert all(tensor.is_contiguous() for tensor in after.values())
    again = files.by_gain(after)
    assert all(again[key].equal(tensor) for key, tensor in after.items())


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_of_one_rank(rank):
    held = tensors()
    made, ranks = files.export(held, rank=rank)
    for name in NAMES:
        count = held[f"{name}.lora_down.weight"].shape[0]
        best = held[f"{name}.adlrns_stats"][0].mean(0).topk(min(rank, count)).indices
        keep = torch.zeros(count).index_fill(0, best, 1.0)
        assert ranks[name] == min(rank, count)
        torch.testing.assert_close(diff(made, name), diff(held, name, keep))
    assert {key.partition(".")[2] for key in made} == {"lora_up.weight", "lora_down.weight", "alpha", "w_norm"}


def test_the_mean_field_is_nearest_of_the_plain_ones():
    """In the energy-weighted sense in which it is defined, it beats truncation and the whole."""
    held = tensors()
    made, _ = files.export(held)
    for name in ("lora_unet_a", "lora_unet_b"):
        kept, energy = held[f"{name}.adlrns_kept"].double(), held[f"{name}.adlrns_stats"][1].double()
        mean = (kept * energy).sum(0) / energy.sum(0)
        torch.testing.assert_close(diff(made, name), diff(held, name, mean))
        cut = [(torch.arange(len(mean)) < rank).double() for rank in range(len(mean) + 1)]
        field, *others = [float((energy * (kept - weight).square()).sum()) for weight in (mean, *cut)]
        assert field <= min(others) + 1e-12


@pytest.mark.parametrize("budget", [0.5, 1.0, 2.0, 10.0])
def test_a_budget_is_the_water_level_on_mean_gains(budget):
    held = tensors()
    made, ranks = files.export(held, budget=budget)
    assert sum(ranks.values()) / len(ranks) <= budget
    gains = [held[f"{name}.adlrns_stats"][0].double().mean(0).sort(descending=True).values for name in NAMES]
    padded = torch.stack([torch.cat([each, each.new_full((5 - len(each),), -torch.inf)]) for each in gains])
    expected = allocate(padded[None], torch.full((3,), 1 / 3), torch.ones(1), budget + 1e-6).ranks[0]
    assert list(ranks.values()) == expected.tolist()
    for name in NAMES:
        assert (f"{name}.alpha" in made) == bool(ranks[name])


@pytest.mark.parametrize(
    ("change", "arguments", "says"),
    [
        (lambda held: held.pop("lora_te_c.lora_down.weight"), {}, "lora_te_c has no lora_down.weight; .* not whole"),
        (lambda held: held.update({"lora_te_c.adlrns_kept": torch.ones(1, 4)}), {}, "do not belong together"),
        (lambda held: [held.pop(key) for key in list(held) if "kept" in key], {}, "no adlrns_kept in the file"),
        (lambda held: None, {"rank": 0}, "rank = 0 is outside"),
        (lambda held: None, {"budget": -1.0}, "budget = -1 must be above 0"),
        (lambda held: None, {"budget": float("nan")}, "budget = nan must be above 0"),
    ],
)
def test_what_it_refuses(change, arguments, says):
    held = tensors()
    change(held)
    with pytest.raises(ValueError, match=says):
        files.export(held, **arguments)
