"""Compression against its definition in float64, and what a compressed model promises."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from hina_kohya.adlrns import compress
from hina_kohya.adlrns.layer.compression import factors


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12)).double()


class Images(nn.Module):
    """A convolution of each kind that can and cannot be converted, and a Linear over the features."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second = nn.Conv2d(8, 10, 3, dilation=2, padding="same", bias=False)
        self.wrapped = nn.Conv2d(10, 10, 3, padding=1, padding_mode="circular")
        self.last = nn.Linear(10, 6)
        self.unused = nn.Linear(10, 6)

    def forward(self, x):
        x = F.relu(self.second(F.relu(self.grouped(self.first(x)))))
        return self.last(self.wrapped(x).mean((2, 3)))


def batches(shape=(12,), n=240, seed=0, size=80, **kind):
    random = torch.Generator().manual_seed(seed)
    scale = torch.randn(n, generator=random).exp().view(-1, *(1,) * len(shape))
    x = torch.randn(n, *shape, generator=random).cumsum(-1) * scale
    return list(x.to(kind.get("dtype", torch.float64)).split(size))


def test_each_prefix_is_the_best_there_is_of_its_rank():
    torch.manual_seed(0)
    weight, a, b = torch.randn(7, 9).double(), torch.randn(9, 40).double(), torch.randn(7, 30).double()
    xx, gg = a @ a.T / 40, b @ b.T / 30
    down, up = factors(weight, xx, gg, ridge=0.0)
    torch.testing.assert_close(up @ down, weight)
    error = lambda w: float(torch.trace(gg @ (weight - w) @ xx @ (weight - w).T))
    values = torch.linalg.svdvals(torch.linalg.cholesky(gg).T @ weight @ torch.linalg.cholesky(xx))
    last = math.inf
    for r in range(1, 8):
        here = error(up[:, :r] @ down[:r])
        assert here == pytest.approx(float(values[r:].square().sum()), abs=1e-9)
        assert here <= last
        last = here
        for seed in range(5):  # no small change of the same rank is better
            torch.manual_seed(seed)
            p, q = up[:, :r] + 0.01 * torch.randn(7, r), down[:r] + 0.01 * torch.randn(r, 9)
            assert error(p @ q) >= here - 1e-12


def test_full_rank_is_the_model_itself():
    model, data = mlp(), batches()
    # 12 x 20 at rank 12 costs 160 percent of the dense layer.
    done = compress(model, data, 200.0, ridge=1e-9)
    assert {plan for layer in done.layers.values() for plan in layer.plan()} == {12, 16}
    torch.testing.assert_close(done(data[0]), model(data[0]), rtol=1e-6, atol=1e-6)


def test_what_is_left_out_is_replaced_by_its_mean_in_the_cell():
    model, data = nn.Linear(12, 9).double(), torch.cat(batches()) + 5
    done = compress(nn.Sequential(model), [data], 40.0)
    layer, cell = done.layers["0"], done.scorer.cell(data)
    y = done(data)
    for k in range(6):
        rows = cell == k
        torch.testing.assert_close(y[rows].mean(0), model(data[rows]).mean(0))  # exact for the mean, at any rank
        r = layer.plan()[k]
        centre = data[rows].mean(0)
        expected = model(centre) + (data[rows] - centre) @ (layer.up[:, :r] @ layer.down[:r]).T
        torch.testing.assert_close(y[rows], expected)


def test_gains_are_what_the_directions_do_to_the_output():
    """With a loss, so that g is known: E_k[(g . u)^2 (v . (x - mean))^2]"""
    model, data = nn.Linear(12, 9).double(), torch.cat(batches())
    target = torch.randn(len(data), 9, generator=torch.Generator().manual_seed(1)).double()
    done = compress(nn.Sequential(model), [(data, target)], 150.0, loss=F.mse_loss, cells=3)
    layer, cell = done.layers["0"], done.scorer.cell(data)
    assert layer.r_max == 9
    g = 2 * (model(data) - target) / 9
    for k in range(3):
        x = data[cell == k] - data[cell == k].mean(0)
        expected = ((g[cell == k] @ layer.up) * (x @ layer.down.T)).square().mean(0)
        torch.testing.assert_close(layer.gain[k], expected.detach())


@pytest.mark.parametrize("budget", [20.0, 35.0, 60.0, 90.0])
def test_the_budget_holds_on_the_calibration_data_and_is_counted_right(budget):
    model, data = mlp(), batches()
    done = compress(model, data, budget)
    x = torch.cat(data)
    with FlopCounterMode(display=False) as dense:
        model(x)
    with FlopCounterMode(display=False) as ours:
        done(x)
    assert done.dense_macs * len(x) * 2 == dense.get_total_flops()
    assert done.spent * 2 == ours.get_total_flops()
    assert done.planned * len(x) == pytest.approx(done.spent)
    assert 100 * done.spent / (done.dense_macs * len(x)) <= budget
    assert 100 * done.spent / (done.dense_macs * len(x)) > 0.8 * budget


def test_more_budget_is_less_error_and_never_less_rank():
    model, data = mlp(), batches()
    done = compress(model, data, 150.0)
    x, last, errors = torch.cat(data), None, []
    for budget in (20.0, 35.0, 60.0, 90.0, 150.0):
        done.set_budget(budget)
        plans = torch.tensor([layer.plan() for layer in done.layers.values()])
        assert last is None or (plans >= last).all()
        last = plans
        errors.append(float((done(x) - model(x)).detach().square().mean()))
    assert errors == sorted(errors, reverse=True)


def test_dynamic_beats_one_rank_for_all_at_the_same_cost():
    """What it is for. On samples that compression has not seen."""
    model, x, test = mlp(), torch.cat(batches(n=960)), torch.cat(batches(n=480, seed=1))
    dynamic, static = compress(model, [x], 40.0), compress(model, [x], 55.0, cells=1)
    error = lambda done: float((done(test) - model(test)).detach().square().mean())
    assert error(dynamic) < 0.7 * error(static)
    assert dynamic.spent <= static.spent


def test_samples_are_the_same_alone_in_any_company_and_in_any_order():
    done = compress(mlp(), batches(), 40.0)
    x = torch.cat(batches(seed=1))[:40]
    y = done(x)
    assert done(x).equal(y)
    torch.testing.assert_close(torch.cat([done(row[None]) for row in x]), y)
    torch.testing.assert_close(done(x.flip(0)), y.flip(0))


def test_convolutions_and_what_stays_dense():
    torch.manual_seed(0)
    model = Images().double()
    data = batches((3, 9, 9), n=120)
    done = compress(model, data, 80.0, exclude=["last"])
    assert set(done.layers) == {"first", "second"}
    assert done.dense == {
        "grouped": "groups = 8",
        "wrapped": "padding_mode = circular",
        "last": "excluded",
        "unused": "its output has no effect on the model's",
    }
    x = torch.cat(data)
    with FlopCounterMode(display=False) as counter:
        done(x)
    assert done.spent * 2 == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert done.dense_macs * 2 * len(x) == counter.get_total_flops()
    assert 0.6 * 80 < 100 * done.planned / done.dense_macs <= 80
    full = compress(model, data, 300.0, ridge=1e-9)
    torch.testing.assert_close(full(x), model(x), rtol=1e-5, atol=1e-6)


def test_tokens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12)).double()
    data = batches((5, 12), n=120)
    done = compress(model, data, 60.0)
    assert done.dense_macs == 5 * 2 * 12 * 16
    x = torch.cat(data)
    done(x)
    assert 100 * done.spent / (len(x) * done.dense_macs) <= 60
    torch.testing.assert_close(compress(model, data, 200.0, ridge=1e-9)(x), model(x), rtol=1e-5, atol=1e-6)


def test_the_model_given_is_not_touched_and_two_results_share_nothing():
    model, data = mlp().train(), batches()
    before = copy.deepcopy(model.state_dict())
    one, two = compress(model, data, 40.0), compress(model, data, 40.0)
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    x = data[0]
    y = two(x)
    assert one(x).equal(y)  # reading the data again gives the same
    one.set_budget(30.0)
    one(x[:3])
    assert two(x).equal(y)
    twin = copy.deepcopy(two)
    twin(x[:3])
    assert twin.context is twin.layers["0"].context is not two.context
    assert two(x).equal(y)


def test_checkpointing_recomputes_the_same():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()
            self.on = False

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False) if self.on else self.inner(x)

    x = torch.cat(batches())
    grads = []
    for on in (False, True):
        done = compress(Checkpointed(), batches(), 40.0)
        done.model.on = on
        done(x).square().sum().backward()
        grads.append([p.grad for p in done.model.parameters()])
    torch.testing.assert_close(*grads)


class Folding(nn.Module):
    """Loses the samples' dimension."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(x.view(-1, 6)).view(x.shape)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: compress(mlp(), iter(batches()), 40.0), "can be read only once"),
        (lambda: compress(mlp(), batches(), 5.0), r"budget = 5 % is below 12.77 %, the least"),
        (lambda: compress(mlp(), batches(), math.nan), "budget = nan"),
        (lambda: compress(mlp(), batches(), 40.0, exclude=["7"]), r"exclude = \['7'\]; .* are \['0', '2', '4'\]"),
        (lambda: compress(nn.ReLU(), batches(), 40.0), "layers are"),
        (lambda: compress(mlp(), [{"x": 1}], 40.0), "a calibration batch is dict"),
        (lambda: compress(mlp(), [torch.full((4, 12), math.nan).double()], 40.0), "no sample has a finite score"),
        (lambda: compress(Folding().double(), batches(), 40.0), "samples must stay along dimension 0, so exclude it"),
        (lambda: compress(mlp(), batches(), 40.0).model(batches()[0]), "call the model itself"),
        (lambda: compress(mlp(), batches(), 40.0).layers["0"].calibrate(batches()[0]), "part of a CompressedModel"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
