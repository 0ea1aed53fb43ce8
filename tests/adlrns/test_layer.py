"""The dynamic layer against W_r = up[:, :r] @ down[:r] a sample at a time, in float64."""

import copy
import itertools
import math

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional as F

from hina_kohya.adlrns import DynamicLowRankLayer, LightweightScorer

SHAPES = {
    "linear": ({}, (6,)),
    "tokens": ({}, (5, 6)),
    "conv1d": ({"kernel_size": (3,), "padding": 1}, (6, 9)),
    "conv2d": ({"kernel_size": (3, 3), "stride": 2, "padding": 1, "dilation": 2}, (6, 8, 9)),
    "conv3d": ({"kernel_size": (1, 2, 3), "padding": (0, 1, 1)}, (6, 4, 5, 4)),
}


def made(kind="linear", cells=4, r_max=5, seed=0, **more):
    """A layer with every value set, and a batch over all its cells."""
    torch.manual_seed(seed)
    geometry, shape = SHAPES[kind]
    layer = DynamicLowRankLayer(6, 7, r_max, r_min=1, cells=cells, **{"dtype": torch.float64, **geometry, **more})
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(24, *shape, dtype=torch.float64) * torch.randn(24).exp().view(-1, *(1,) * len(shape))
    layer.scorer.fit(x)
    return layer, x


def set_ranks(layer, ranks):
    layer.ranks.copy_(torch.tensor([*ranks, layer.r_max]))
    layer._plans.clear()


def reference(layer, x, ranks):
    """Each sample on its own, by the product of its factors."""
    convolve = [F.linear, F.conv1d, F.conv2d, F.conv3d][layer.dims]
    out = []
    for sample in x:
        k = int(layer.scorer.cell(sample[None]))
        r = ranks[k] if k < layer.cells else layer.r_max
        weight = layer.up[:, :r] @ layer.down[:r]
        bias = layer.up[:, :r] @ layer.shift[k, :r] + layer.bias[k]
        if layer.dims:
            weight = weight.view(layer.out_features, layer.in_features, *layer.kernel_size)
        out.append(convolve(sample[None], weight, bias, **layer.how))
    return torch.cat(out)


@pytest.mark.parametrize("kind", SHAPES)
def test_outputs_and_gradients_are_those_of_one_sample_at_a_time(kind):
    layer, x = made(kind)
    ranks = [1, 3, 2, 5]
    set_ranks(layer, ranks)
    x.requires_grad_()
    y, rank = layer(x)
    assert rank == pytest.approx(sum(ranks) / 4)  # quantiles: equally many samples in each cell
    expected = reference(layer, x, ranks)
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], expected)
    leaves = [x, layer.down, layer.up, layer.shift, layer.bias]
    weight = torch.randn_like(y)
    torch.testing.assert_close(
        torch.autograd.grad((y * weight).sum(), leaves), torch.autograd.grad((expected * weight).sum(), leaves)
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", SHAPES)
def test_without_gradients_it_writes_in_place_and_gives_the_same(kind, bias):
    layer, x = made(kind, bias=bias)
    set_ranks(layer, [0, 3, 2, 5] if not layer.dims else [1, 3, 2, 5])
    expected = layer(x)[0]
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(x.float())[0].dtype == torch.bfloat16


def replaced(layer):
    layer.up = torch.nn.Parameter(layer.up.detach() * 2)


def repointed(layer):
    layer.down.data = layer.down.data * 2


def loaded(layer, assign=False):
    other = dict(made(seed=1)[0].named_parameters())
    layer.load_state_dict({name: value.detach() for name, value in other.items()}, strict=False, assign=assign)


CHANGES = {
    "written to": lambda layer: layer.up.data.mul_(2),
    "an optimizer's step": lambda layer: torch.optim.SGD([layer.bias], 1.0).step(),
    "loaded": loaded,
    "assigned": lambda layer: loaded(layer, assign=True),
    "replaced": replaced,
    "repointed": repointed,
    "converted": lambda layer: layer.bfloat16().double(),
    "trimmed": lambda layer: layer.trim(4),
    "another plan": lambda layer: set_ranks(layer, [1, 2, 3, 4]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_without_gradients_the_weights_are_always_the_present_ones(change):
    layer, x = made()
    set_ranks(layer, [1, 3, 2, 5])
    layer.bias.grad = torch.ones_like(layer.bias)
    with torch.no_grad():
        before, other = layer(x)[0], copy.deepcopy(layer)
    change(layer)
    with torch.no_grad():
        y = layer(x)[0]
        assert not y.equal(before)
        assert other(x)[0].equal(before)
    torch.testing.assert_close(y, layer(x)[0].detach())


@pytest.mark.parametrize("change", ["loaded", "assigned", "converted", "trimmed"])
def test_nothing_that_is_kept_holds_the_memory_that_weights_leave(change):
    layer, x = made()
    with torch.no_grad():
        layer(x)
    assert len(layer._matrices._kept[1]) == layer.cells + 1
    CHANGES[change](layer)
    assert layer._matrices._kept[1] == ()


def test_every_vector_of_ranks_is_right_zero_included():
    layer, x = made(cells=3, r_max=2)
    layer.scheduler.r_min = layer.r_min = 0
    for ranks in itertools.product(range(3), repeat=3):
        set_ranks(layer, ranks)
        y, rank = layer(x)
        torch.testing.assert_close(y, reference(layer, x, ranks))
        assert rank == sum(ranks) / 3
        grads = torch.autograd.grad(y.sum(), [layer.down, layer.up])
        assert all(grad is not None for grad in grads)
        assert bool(grads[0].any()) == any(ranks)


def test_the_call_of_the_original_document():
    layer = DynamicLowRankLayer(in_features=128, out_features=256, r_max=64, r_min=4)
    output, current_rank = layer(torch.randn(10, 128), budget=5.0)
    assert output.shape == (10, 256)
    assert current_rank == math.floor(0.05 * 128 * 256 / (128 + 256))  # 5 percent of the dense MACs


def test_a_budget_holds_over_the_calibration_samples():
    layer, x = made(r_max=6)
    layer.calibrate(x)
    last = 0.0
    for budget in (40.0, 60.0, 100.0, 150.0, 186.0):
        _, rank = layer(x, budget=budget)
        assert 100 * rank * (6 + 7) / (6 * 7) <= budget
        assert rank >= last
        last = rank
        layer.set_budget(budget)
        assert layer(x)[1] == rank
        assert layer.planned == pytest.approx(100 * rank * 13 / 42)
    assert last == 6


def test_more_complex_cells_get_more():
    layer, x = made(r_max=6)
    layer.calibrate(x)
    ranks = layer.plan(90.0)
    assert list(ranks) == sorted(ranks)
    assert ranks[0] < ranks[3]


def test_calibrated_gains_are_the_mean_squares_that_a_direction_adds():
    layer, x = made("tokens")
    layer.shift.data.zero_()
    layer.calibrate(x)
    cell = layer.scorer.cell(x)
    for k, r in itertools.product(range(4), range(5)):
        added = torch.einsum("o,ntr->nto", layer.up[:, r], (x[cell == k] @ layer.down[r])[..., None])
        torch.testing.assert_close(layer.gain[k, r], added.square().sum(-1).mean().detach())


def test_a_sample_is_the_same_alone_in_any_company_and_again():
    layer, x = made()
    layer.eval()
    layer.calibrate(x)
    y, _ = layer(x, budget=60.0)
    assert layer(x, budget=60.0)[0].equal(y)
    alone = torch.cat([layer(row[None], budget=60.0)[0] for row in x])
    torch.testing.assert_close(alone, y)
    torch.testing.assert_close(layer(x.flip(0)[:9], budget=60.0)[0], y.flip(0)[:9])


def test_full_rank_is_the_plain_product():
    layer, x = made(bias=False)
    y, rank = layer(x)
    assert rank == 5
    torch.testing.assert_close(y, x @ (layer.up @ layer.down).T)


def test_values_that_are_not_finite_come_out_and_run_at_full_rank():
    layer, x = made()
    set_ranks(layer, [1, 1, 1, 1])
    x[3, 2], x[7, 0] = math.nan, math.inf
    with pytest.warns(UserWarning, match="not finite"):
        y, rank = layer(x)
    assert rank == (22 * 1 + 2 * 5) / 24
    assert y[3].isnan().all()
    assert not y[7].isfinite().any()
    assert y[[0, 1, 2, 4, 5, 6]].isfinite().all()


def test_an_empty_batch():
    y, rank = made()[0](torch.zeros(0, 6, dtype=torch.float64))
    assert y.shape == (0, 7)
    assert math.isnan(rank)


def test_saved_and_loaded_it_plans_and_gives_the_same():
    layer, x = made()
    layer.calibrate(x)
    layer.set_budget(70.0)
    other = made(seed=1)[0]
    other(x)  # has a plan of its own
    other.load_state_dict(layer.state_dict())
    assert other(x)[0].equal(layer(x)[0])
    assert other.plan(50.0) == layer.plan(50.0)
    assert copy.deepcopy(layer)(x)[0].equal(layer(x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_in_half_precision_it_plans_as_before(dtype, scale):
    layer, x = made()
    x = x * scale
    layer.calibrate(x)
    plan, ranks, planned = layer.plan(70.0), layer._cell(x), layer.planned
    layer.to(dtype)
    assert layer.plan(70.0) == plan
    assert layer._cell(x).equal(ranks)
    assert layer.planned == planned


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_a_learned_score_in_another_precision(dtype, training):
    layer, x = made(num_gate_blocks=3, scorer_hidden=4)
    layer.calibrate(x)
    torch.nn.init.normal_(layer.scorer.learned[2].weight)
    layer.train(training)
    y, rank = layer(x.to(dtype).to(x.dtype))
    converted, same = layer.to(dtype)(x.to(dtype))
    assert converted.dtype == dtype
    assert same == pytest.approx(rank, rel=0.1)
    if training or dtype == torch.float64:  # in 16 bits a sample at an edge may be in the next cell
        torch.testing.assert_close(converted.to(y.dtype), y, rtol=0.1, atol=0.3)


def test_half_precision():
    layer, x = made(dtype=torch.bfloat16)
    set_ranks(layer, [1, 2, 3, 4])
    y, _ = layer(x.bfloat16())
    wide = copy.deepcopy(layer).double()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), wide(x.bfloat16().double())[0], rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", ["linear", "tokens", "conv2d"])
def test_gates_train_softly_and_run_hard(kind):
    layer, x = made(kind, num_gate_blocks=3, scorer_hidden=2)
    x = x.float()
    layer.float()
    layer.gate.fit(layer.scorer(x))
    layer.gate.temperature = 1e-6  # soft is hard here, so both must agree
    y, rank = layer.train()(x)
    hard, hard_rank = layer.eval()(x)
    assert layer.plan() == (1, 3, 5, 5)
    # The edges are scores of samples, where a gate is half open.
    clear = ((layer.scorer(x)[:, None] - layer.gate.edges()).abs() > 1e-3).all(1)
    assert clear.sum() >= 20
    torch.testing.assert_close(y[clear], hard[clear], rtol=1e-4, atol=1e-4)
    assert rank == pytest.approx(hard_rank, abs=0.3)


def test_the_energy_has_a_gradient_that_lowers_it():
    layer, x = made(num_gate_blocks=4, scorer_hidden=3, dtype=torch.float32)
    layer.calibrate(x.float())
    learned = [*layer.scorer.parameters(), *layer.gate.parameters()]
    optimizer = torch.optim.SGD(learned, 5.0)
    seen = []
    for _ in range(20):
        optimizer.zero_grad()
        _, rank = layer.train()(x.float())
        seen.append(float(layer.energy.detach()))
        assert seen[-1] == pytest.approx(rank * 13 / 42)
        layer.energy.backward()
        assert all(parameter.grad is not None for parameter in learned)
        optimizer.step()
    assert seen[-1] < 0.7 * seen[0]
    assert layer.eval()(x.float())[1] < 3
    copy.deepcopy(layer)  # the graph of the energy is not copied


def test_gains_follow_the_training_backward():
    layer, x = made(scheduler="adaptive")
    layer.train()
    set_ranks(layer, [2, 2, 5, 5])
    before = layer.gain.clone()
    target = torch.randn(24, 7, dtype=torch.float64)
    y, _ = layer(x)
    F.mse_loss(y, target).backward()
    cell = layer.scorer.cell(x)
    g = (2 * (y - target) / 7).detach()  # of each sample's own loss
    for k, r in ((0, 2), (1, 2), (2, 5), (3, 5)):
        rows = cell == k
        seen = (g[rows] @ layer.up[:, :r]) * (x[rows] @ layer.down[:r].T + layer.shift[k, :r])
        expected = 0.9 * before[k, :r] + 0.1 * seen.square().mean(0)
        torch.testing.assert_close(layer.gain[k, :r], expected.detach())
        assert layer.gain[k, r:].equal(before[k, r:])


@pytest.mark.parametrize("kind", SHAPES)
def test_products_need_no_transposed_factor_however_the_layer_came_to_be(kind, tmp_path):
    """A Linear's factors stay in the order that is fast, a convolution's in the usual one; gradients follow them."""
    layer, x = made(kind)
    set_ranks(layer, [1, 3, 2, 5])
    again = made(kind, seed=1)[0]
    save_model(layer, tmp_path / "layer.safetensors")
    load_model(again, tmp_path / "layer.safetensors")
    assert all(value.equal(again.state_dict()[name]) for name, value in layer.state_dict().items())
    trimmed = copy.deepcopy(layer)
    trimmed.trim(4)
    for each in (layer, copy.deepcopy(layer).float(), trimmed, again):
        assert all(factor.is_contiguous() == bool(layer.dims) for factor in (each.down, each.up))
        assert layer.dims or (each.down.T.is_contiguous() and each.up.T.is_contiguous())
    factors = [layer.down, layer.up]
    for factor, grad in zip(factors, torch.autograd.grad(layer(x)[0].sum(), factors), strict=True):
        assert grad.stride() == factor.stride()


def test_trimming_leaves_cheaper_plans_as_they_are():
    layer, x = made()
    layer.calibrate(x)
    layer.set_budget(60.0)
    y, rank = layer(x)
    assert max(layer.plan()[:-1]) < 5
    layer.trim(max(layer.plan()[:-1]))
    assert layer.down.shape[0] == layer.r_max < 5
    torch.testing.assert_close(layer(x)[0], y)
    assert layer(x)[1] == rank


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: DynamicLowRankLayer(6, 7, 8), r"r_max = 8 of a layer 6 -> 7 must be from 1 to 6"),
        (lambda: DynamicLowRankLayer(0, 7, 1), "r_max = 1 of a layer 0 -> 7"),
        (lambda: DynamicLowRankLayer(6, 7, 3, r_min=4), "r_min = 4, r_max = 3"),
        (lambda: DynamicLowRankLayer(6, 7, 5, scorer_hidden=3), "learns through gates only"),
        (lambda: DynamicLowRankLayer(6, 7, 5, 0, kernel_size=(3,)), "r_min = 0 of a convolution must be at least 1"),
        (lambda: made()[0](torch.randn(3, 6).double(), budget=0.0), "budget = 0.0 must be above 0"),
        (
            lambda: made()[0](torch.randn(3, 6).double(), budget=1.0),
            "budget = 1 is below 30.9524, the cost of r_min = 1",
        ),
        (lambda: made(num_gate_blocks=3)[0](torch.randn(3, 6).double(), budget=50.0), "budgets are for eval"),
        (lambda: made()[0].set_gains(torch.full((4, 5), math.nan), torch.ones(4)), "gains must be finite"),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_a_scorer_outside_of_the_layer_agrees():
    layer, x = made()
    scorer = LightweightScorer(cells=4)
    scorer.fit(x)
    assert scorer.cell(x).equal(layer.scorer.cell(x))


def test_the_demo_of_the_original_document_spends_its_budget():
    """Nothing is known of a new layer but its weights, whose gains are nearly equal: not a reason to spend nothing."""
    torch.manual_seed(0)
    layer = DynamicLowRankLayer(512, 256, r_max=64, r_min=4)
    x = torch.randn(32, 512)
    ranks = [layer(x, budget=budget)[1] for budget in (2.4, 5.0, 10.0, 20.0, 30.0)]
    for budget, rank in zip((2.4, 5.0, 10.0, 20.0, 30.0), ranks, strict=True):
        direction = 100 * (512 + 256) / (512 * 256)
        assert budget - direction < rank * direction <= budget
