"""Grouped products against a masked reference that computes everything, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hina_kohya.adlrns.adapter.execution import Batch, Product, grouped, plan

RANK = 5
LAYERS = {
    "linear": (nn.Linear(6, 7, bias=False), (4, 3, 6)),
    "vector": (nn.Linear(6, 7, bias=False), (4, 6)),
    "conv1d": (nn.Conv1d(6, 7, 3, bias=False), (4, 6, 9)),
    "conv2d": (nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), (4, 6, 7, 5)),
    "dilated": (nn.Conv2d(6, 4, (3, 1), padding="same", dilation=2, bias=False), (4, 6, 7, 5)),
    "groups": (nn.Conv2d(6, 4, 3, stride=(1, 2), padding=2, dilation=2, groups=2, bias=False), (4, 6, 7, 5)),
    "conv3d": (nn.Conv3d(6, 9, 2, groups=3, bias=False), (4, 6, 4, 3, 3)),
}
TABLES = {
    "any": [[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]],
    "prefixes": [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]],
    "equal": [[1, 1, 0, 0, 0]] * 3,
}


def product(layer):
    if isinstance(layer, nn.Linear):
        return Product(F.linear, {})
    where = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return Product({1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[layer.weight.dim() - 2], where, layer.groups)


def factors(layer, seed=0):
    random = torch.Generator().manual_seed(seed)
    out, *inner = layer.weight.shape
    shape = (out, RANK, *[1] * (len(inner) - 1))
    up, down = (torch.randn(each, generator=random, dtype=torch.float64) for each in (shape, (RANK, *inner)))
    return up.requires_grad_(), down.requires_grad_()


def masked(layer, x, up, down, mask):
    """One sample at a time through the layer itself, with the weight up @ diag(mask) @ down."""
    rows = []
    for sample, keep in zip(x, mask, strict=True):
        weight = ((up.flatten(1) * keep) @ down.flatten(1)).view(layer.weight.shape)
        rows.append(torch.func.functional_call(layer, {"weight": weight}, sample[None])[0])
    return torch.stack(rows)


@pytest.mark.parametrize("states", [(2, 0, 1, 0), (1, 1, 1, 1), (0,), (2, 0, 1) * 4])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", LAYERS)
def test_grouped_is_masked(name, table, states):
    layer, shape = LAYERS[name]
    kept = torch.tensor(TABLES[table], dtype=torch.bool)
    shape = (max(len(states), 4), *shape[1:])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    up, down = factors(layer)
    made = product(layer)

    def run(rows, directions):
        return made.expand(made.hidden(rows, directions.of(down, 0)), directions.of(up, 1))

    ours = grouped(x, Batch(states), plan(kept, x.device), run)
    reference = masked(layer, x, up, down, kept[list(states * (1 if len(states) > 1 else 4))].double())
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(ours)
    for a, b in zip(
        *(torch.autograd.grad((each * weight).sum(), (x, up, down)) for each in (ours, reference)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_hidden_values_belong_to_a_direction_and_a_sample(name):
    layer, shape = LAYERS[name]
    _, down = (each.detach() for each in factors(layer))
    made = product(layer)
    hidden = made.hidden(torch.randn(shape, dtype=torch.float64), down)
    total = made.a_sample(hidden, 2)
    assert total.shape == (2, RANK)
    torch.testing.assert_close(total.sum(), hidden.sum())
    only = hidden[2:, ..., 3] if made.linear else hidden[2:, 3::RANK]
    assert total[1, 3] == pytest.approx(float(only.sum()))
    times = torch.rand(RANK), torch.rand(shape[0], RANK)
    for each, by in zip(times, (times[0].expand(shape[0], -1), times[1]), strict=True):
        scaled = hidden * made.a_direction(each, hidden.dim())
        torch.testing.assert_close(made.a_sample(scaled, shape[0]), made.a_sample(hidden, shape[0]) * by)


def test_one_group_is_neither_sorted_nor_copied():
    seen = []
    x = torch.randn(4, 3)
    kept = torch.tensor([[1, 0], [1, 0], [1, 1]], dtype=torch.bool)
    grouped(x, Batch((0, 1, 0, 1)), plan(kept, x.device), lambda rows, _: seen.append(rows) or rows)
    assert len(seen) == 1
    assert seen[0] is x


def test_states_of_equal_sets_run_together_and_a_prefix_is_a_slice():
    calls = []
    kept = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 0]], dtype=torch.bool)
    directions = plan(kept, torch.device("cpu"))
    assert directions[0] is directions[2]
    assert directions[0].index is None
    assert directions[0].of(torch.arange(6.0).view(3, 2), 0).tolist() == [[0, 1], [2, 3]]
    for states, runs in ((0, 2, 1, 0), [2, 1, 1]), ((0, 1) * 5, [5, 5]):
        calls.clear()
        x = torch.arange(float(len(states))).view(-1, 1)
        out = grouped(x, Batch(states), directions, lambda rows, each: calls.append((len(rows), each)) or rows)
        assert [count for count, _ in calls] == runs  # a large batch is sorted
        assert out.equal(x)


def test_rows_of_a_sample_are_neighbours():
    kept = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool)
    directions = plan(kept, torch.device("cpu"))
    x = torch.arange(6.0).view(6, 1)
    tenfold = lambda rows, each: rows * (10 if each is directions[0] else 1)
    assert grouped(x, Batch((1, 0, 1)), directions, tenfold).flatten().tolist() == [0, 1, 20, 30, 4, 5]
    many = torch.arange(20.0).view(20, 1)
    expected = [row * (10 if row // 2 % 2 else 1) for row in range(20)]
    assert grouped(many, Batch((1, 0) * 5), directions, tenfold).flatten().tolist() == expected
    with pytest.raises(ValueError, match="5 rows cannot be shared among 3 samples; write granularity=batch"):
        grouped(x[:5], Batch((1, 0, 1)), directions, lambda rows, _: rows)


def test_an_empty_batch():
    kept = torch.ones(1, RANK, dtype=torch.bool)
    layer, _ = LAYERS["linear"]
    up, down = factors(layer)
    made = product(layer)
    run = lambda rows, each: made.expand(made.hidden(rows, each.of(down, 0)), each.of(up, 1))
    assert grouped(torch.zeros(0, 6, dtype=torch.float64), Batch((0,)), plan(kept, up.device), run).shape == (0, 7)
