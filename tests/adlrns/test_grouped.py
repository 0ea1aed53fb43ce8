"""Grouped execution against a loop over the samples."""

import math

import pytest
import torch

from hina_kohya.adlrns.layer.complexity import cells_of
from hina_kohya.adlrns.layer.grouped import group, run_grouped


def grouped(cell, cells):
    """Of samples whose scores lie in these cells"""
    edges = torch.tensor([*map(float, range(1, cells)), math.inf])
    score = torch.tensor([k + 0.5 if k < cells else math.inf for k in cell])
    assert cells_of(score, edges).tolist() == list(cell)
    return group(score, edges)


def expected(cell, cells):
    """The stable sort of Python"""
    order = sorted(range(len(cell)), key=lambda i: cell[i])
    spans = [(k, cell.count(k)) for k in range(cells + 1) if k in cell]
    return order, spans


@pytest.mark.parametrize("cell", [[0], [2, 2, 2], [1, 0, 1, 2, 0], [2, 1, 0], [0, 0, 1]])
def test_samples_come_sorted_and_go_back_in_order(cell):
    groups = grouped(cell, 3)
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


def test_groups_are_the_cells_of_the_scores_edges_and_infinities_included():
    edges = torch.tensor([-1.0, 0.5, math.inf])
    score = torch.tensor([0.5, -math.inf, math.inf, 0.4, -1.0, 3e38, -1.1])
    with pytest.warns(UserWarning, match="not finite"):
        groups = group(score, edges)
    cells = torch.cat([torch.full((stop - start,), k) for k, start, stop in groups.spans])
    assert groups.unsort(cells).equal(cells_of(score, edges))


def test_one_cell_is_not_sorted():
    assert grouped([3, 3], 4).order is None
    assert grouped([3, 1], 4).order is not None


def test_an_empty_batch_is_one_empty_group():
    groups = grouped([], 3)
    assert groups.spans == [(0, 0, 0)]
    assert run_grouped(torch.zeros(0, 4), groups, lambda rows, _: rows[:, :2]).shape == (0, 2)


def test_samples_without_a_score_are_warned_of():
    with pytest.warns(UserWarning, match="not finite run at full rank"):
        assert grouped([0, 3], 3).spans[-1] == (3, 1, 2)
