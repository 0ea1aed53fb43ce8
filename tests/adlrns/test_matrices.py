"""Products of each cell's matrices against a loop over the samples."""

import copy
import math

import pytest
import torch

from hina_kohya.adlrns.layer.grouped import group
from hina_kohya.adlrns.layer.matrices import MatricesOfCells, run_matrices

EDGES = torch.tensor([1, 2, 3, math.inf])
RANKS = (2, 0, 4, 5)


def weights(means=True, out=7):
    torch.manual_seed(0)
    down, shift, up, bias = torch.randn(5, 6), torch.randn(4, 5), torch.randn(out, 5), torch.randn(4, out)
    return (down, shift, up, bias) if means else (down, None, up, None)


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("out", [5, 6, 7])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 2, 6)])
@pytest.mark.parametrize("cell", [[2, 0, 3, 1, 0, 2], [0, 0, 2], [3, 3], []])
def test_each_sample_is_multiplied_with_its_cells_matrices(cell, shape, out, means):
    down, shift, up, bias = weights(means, out)
    x = torch.randn(len(cell), *shape)
    before, groups = x.clone(), group(torch.tensor(cell) + 0.5, EDGES)
    matrices = MatricesOfCells()(RANKS, down, shift, up, bias)
    y = run_matrices(x, groups, matrices)
    assert y.shape == (len(cell), *shape[:-1], out)
    for row, k, got in zip(x, cell, y, strict=True):
        r = RANKS[k]
        hidden = row @ down[:r].T + (shift[k, :r] if means else 0)
        torch.testing.assert_close(got, hidden @ up[:, :r].T + (bias[k] if means else 0))
    in_order = groups.sort(x).clone()
    assert run_matrices(in_order, groups.sorted(), matrices).equal(groups.sort(y))
    assert x.equal(before)  # a result is never written over the caller's rows
    assert in_order.equal(groups.sort(before))


@pytest.mark.parametrize("out", [6, 7])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 2, 6)])
def test_samples_may_lie_in_memory_in_any_order(shape, out):
    groups, matrices = group(torch.tensor([2, 0, 3]) + 0.5, EDGES), MatricesOfCells()(RANKS, *weights(out=out))
    x = torch.randn(3, *shape)
    turned = x.movedim(-1, 0).contiguous().movedim(0, -1)
    assert not turned.is_contiguous()
    for each in (groups, groups.sorted()):
        torch.testing.assert_close(run_matrices(turned, each, matrices), run_matrices(x, each, matrices))
        assert turned.equal(x)


def test_views_are_kept_and_made_anew_where_they_would_be_others():
    matrices, made_of = MatricesOfCells(), weights()
    kept = matrices(RANKS, *made_of)
    assert matrices(RANKS, *made_of) is kept
    assert kept[0].up.data_ptr() == made_of[2].data_ptr()
    assert matrices((1, 2, 3, 4), *made_of) is not kept
    for changed in range(4):
        now = tuple(w.clone() if number == changed else w for number, w in enumerate(made_of))
        again = matrices(RANKS, *now)[3]
        assert [view.data_ptr() for view in again] == [
            w[3:].data_ptr() if w.shape[0] == 4 else w.data_ptr() for w in now
        ]
    assert copy.deepcopy(matrices)._kept == (None, ())
