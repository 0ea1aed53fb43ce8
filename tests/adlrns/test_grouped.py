"""Grouped execution against a loop over the samples."""

import pytest
import torch

from hina_kohya.adlrns.grouped import group, run_grouped, run_matrices


def expected(cell, cells):
    """The stable sort of Python"""
    order = sorted(range(len(cell)), key=lambda i: cell[i])
    spans = [(k, cell.count(k)) for k in range(cells + 1) if k in cell]
    return order, spans


@pytest.mark.parametrize("cell", [[0], [2, 2, 2], [1, 0, 1, 2, 0], [2, 1, 0], [0, 0, 1]])
def test_samples_come_sorted_and_go_back_in_order(cell):
    groups = group(torch.tensor(cell), 3)
    order, spans = expected(cell, 3)
    assert [(k, stop - start) for k, start, stop in groups.spans] == spans
    assert groups.sort(torch.tensor(cell)).tolist() == [cell[i] for i in order]
    x = torch.arange(len(cell) * 6.0).view(len(cell), 2, 3)
    assert groups.unsort(groups.sort(x)).equal(x)
    calls = []

    def one(rows, k):
        calls.append((k, len(rows)))
        return rows * (k + 1)

    assert run_grouped(x, groups, one).equal(x * (torch.tensor(cell) + 1)[:, None, None])
    assert calls == spans
    assert run_grouped(groups.sort(x), groups.sorted(), one).equal(groups.sort(run_grouped(x, groups, one)))


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 2, 6)])
def test_matrices_are_the_products_of_each_sample(shape, means):
    torch.manual_seed(0)
    cell, ranks = [2, 0, 3, 1, 0, 2], [2, 0, 4, 5]
    x, down, up = torch.randn(len(cell), *shape), torch.randn(5, 6), torch.randn(7, 5)
    shift, bias = (torch.randn(4, 5), torch.randn(4, 7)) if means else (None, None)
    y = run_matrices(x, group(torch.tensor(cell), 4), ranks, down, up, shift, bias)
    assert y.shape == (len(cell), *shape[:-1], 7)
    for row, k, got in zip(x, cell, y, strict=True):
        hidden = row @ down[: ranks[k]].T + (shift[k, : ranks[k]] if means else 0)
        torch.testing.assert_close(got, hidden @ up[:, : ranks[k]].T + (bias[k] if means else 0))


def test_one_cell_is_not_sorted():
    assert group(torch.tensor([3, 3]), 4).order is None
    assert group(torch.tensor([3, 1]), 4).order is not None


def test_an_empty_batch_is_one_empty_group():
    groups = group(torch.zeros(0, dtype=torch.long), 3)
    assert groups.spans == ((0, 0, 0),)
    assert run_grouped(torch.zeros(0, 4), groups, lambda rows, _: rows[:, :2]).shape == (0, 2)


def test_samples_without_a_score_are_warned_of():
    with pytest.warns(UserWarning, match="not finite run at full rank"):
        assert group(torch.tensor([0, 3]), 3).spans[-1] == (3, 1, 2)
