"""Statistics against autograd and against losses that are really computed; how gains are shrunk and chosen."""

import math

import pytest
import torch
from torch import nn

from hina_kohya.adlrns.adapter import gains
from hina_kohya.adlrns.adapter.arguments import settle
from hina_kohya.adlrns.adapter.module import MAKING, AdlrnsModule
from hina_kohya.adlrns.adapter.states import States

RANK = 4


class Model(nn.Module):
    """x -> adapted layer -> fixed map, called with a timestep."""

    def __init__(self, layer, tail):
        super().__init__()
        self.layer, self.tail = layer, tail

    def forward(self, x, timestep):
        return self.tail(self.layer(x))


def made(layer, tail, bins=3, kept=None):
    torch.manual_seed(0)
    states = States(bins)
    token = MAKING.set(states)
    module = AdlrnsModule("lora_unet_a", layer.double().requires_grad_(False), 1.0, RANK, 2).double()
    MAKING.reset(token)
    nn.init.normal_(module.lora_up.weight)
    if kept is not None:
        kept = torch.as_tensor(kept, dtype=torch.bool)
        module.set_table(kept, torch.zeros(kept.shape), torch.ones(kept.shape))
    module.apply_to()
    model = Model(layer, tail.double().requires_grad_(False))
    states.attach(model)
    states.probing = True
    return model, module, states


LAYERS = {
    "linear": lambda: (nn.Linear(6, 7), nn.Linear(7, 3), (5, 4, 6)),
    "conv": lambda: (nn.Conv2d(4, 6, 3, stride=2), nn.Conv2d(6, 2, 1), (5, 4, 7, 7)),
    "groups": lambda: (nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 2, 1), (5, 4, 7, 7)),
}
KEPT = [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("scale", [1.0, 65536.0])
@pytest.mark.parametrize("name", LAYERS)
def test_the_window_is_the_derivative_by_each_direction_s_strength(name, scale):
    layer, tail, shape = LAYERS[name]()
    model, module, states = made(layer, tail, kept=KEPT)
    module.multiplier = 0.7
    x = torch.randn(shape, dtype=torch.float64)
    timesteps = torch.tensor([900, 10, 400, 20, 950])
    bins = [2, 0, 1, 0, 2]
    target = torch.randn_like(model(x, timesteps))
    loss = lambda out, goal: (out - goal).square().mean() * scale
    loss(model.train()(x, timesteps), target).backward()

    expected = torch.zeros(3, 2 + 4 * RANK, dtype=torch.float64)
    output = torch.zeros(3, 3, dtype=torch.float64)
    down, up = module.lora_down.weight, module.lora_up.weight
    for sample, goal, state in zip(x, target, bins, strict=True):
        strength = (
            module.adlrns_kept[state].double().requires_grad_()
        )  # kept 1, not kept 0: the derivative exists there
        diff = ((up.flatten(1) * strength) @ down.flatten(1)).view(layer.weight.shape) * module.scale * 0.7
        weight = (layer.weight + diff).detach() + diff - diff.detach()
        inner = torch.func.functional_call(_bare(layer), {"weight": weight}, sample[None])
        inner.retain_grad()
        out = tail(inner)
        out.retain_grad()
        loss(out[0], goal).backward(retain_graph=True)
        a = strength.grad
        hidden = _energy(layer, sample[None], down * module.scale * 0.7)
        sensitivity = _backward(layer, inner.grad, up)
        positions = inner[0].numel() / inner.shape[-1 if name == "linear" else 1]
        row = torch.cat([torch.ones(1), torch.tensor([positions]), a, a.square(), hidden, sensitivity])
        expected[state] += row
        square = out.grad.square().sum()
        output[state] += torch.stack([torch.ones(()), square, square * goal.numel()])
    torch.testing.assert_close(module.window.double(), expected, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(states.output.double(), output, rtol=1e-4, atol=0)


def _bare(layer):
    """The layer without the adapter: LyCORIS replaces `forward` on the instance."""
    clone = type(layer).__new__(type(layer))
    clone.__dict__ = {key: value for key, value in layer.__dict__.items() if key != "forward"}
    return clone


def _energy(layer, sample, down):
    """Squares of the hidden values, summed over positions and groups: [R]"""
    if isinstance(layer, nn.Linear):
        return (sample @ down.T).square().flatten(0, -2).sum(0)
    where = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    return sum(torch.conv2d(part, down, **where).square().sum((0, 2, 3)) for part in sample.chunk(layer.groups, 1))


def _backward(layer, gradient, up):
    """Squares of the gradients of the hidden values, summed over positions and groups: [R]"""
    if isinstance(layer, nn.Linear):
        return (gradient @ up).square().flatten(0, -2).sum(0)
    parts = zip(gradient.chunk(layer.groups, 1), up.flatten(1).chunk(layer.groups, 0), strict=True)
    return sum(torch.einsum("nohw,or->nrhw", part, rows).square().sum((0, 2, 3)) for part, rows in parts)


def test_gains_are_the_losses_with_and_without():
    """For a linear model and a mean squared error the expectation is exact, whatever the loss's unit."""
    torch.manual_seed(5)
    # the tail mixes all outputs, as a network does; samples are many since the residual is the probe
    layer, tail = nn.Linear(6, 24), nn.Linear(24, 24)
    nn.init.orthogonal_(tail.weight)
    kept = [[1, 1, 0, 0]]
    model, module, states = made(layer, tail, bins=1, kept=kept)
    module.lora_up.weight.data *= 0.2
    model.train()
    x = torch.randn(6000, 6, dtype=torch.float64)
    residual = math.sqrt(gains.REFERENCE_LOSS) * torch.randn(6000, 24, dtype=torch.float64)
    slope = torch.randn(6, 24, dtype=torch.float64) * 0.05
    target = (model(x, torch.zeros(6000)) + residual + x @ slope).detach()
    true = []
    for direction in range(RANK):
        losses = []
        for keep in (False, True):
            module.adlrns_kept[0, direction] = keep
            module._plan = None
            losses.append(float((model(x, torch.zeros(6000)) - target).detach().square().mean()))
        module.adlrns_kept[0, direction] = bool(kept[0][direction])
        module._plan = None
        true.append(losses[0] - losses[1])
    module.window = states.output = None
    for factor in (1.0, 1000.0):
        ((model(x, torch.zeros(6000)) - target).square().mean() * factor).backward()
        seen = gains.measure(module.window.double(), states.output.double(), module.adlrns_kept)
        found = seen.gain[0].tolist()
        assert [value > 0 for value in found] == [value > 0 for value in true]
        assert found == pytest.approx(true, rel=0.15, abs=0.05 * max(map(abs, true)))
        square = states.output[0, 1] / states.output[0, 0]
        curvature = module.window[0, 2 + RANK : 2 + 2 * RANK] / module.window[0, 0] / square
        torch.testing.assert_close(seen.kronecker[0].float(), curvature.float(), rtol=0.15, atol=0.0)
        module.window = states.output = None


def test_a_sample_that_overflowed_counts_for_nothing():
    rows = gains.columns(
        torch.tensor([[1.0, 2.0], [math.inf, 1.0], [math.nan, 1.0]]), torch.ones(3, 2), torch.full((3, 2), 3.0), 5.0
    )
    assert rows[0].tolist() == [1, 5, 1, 2, 1, 4, 1, 1, 3, 3]
    assert not rows[1:].any()


def test_nothing_seen_is_no_gain():
    seen = gains.measure(torch.zeros(3, 2 + 4 * RANK), torch.zeros(3, 3), torch.ones(3, RANK, dtype=torch.bool))
    assert not seen.count.any()
    assert not seen.gain.any()


def ledger(states=2, ranks=(3, 2)):
    return gains.Ledger(states, list(ranks))


def test_older_windows_weigh_less():
    book = ledger()
    ones = torch.ones(2, 3)
    first = gains.Measured(torch.tensor([10.0, 0.0]), ones, 4 * ones, ones, 2 * ones)
    second = gains.Measured(torch.tensor([20.0, 5.0]), 3 * ones, 4 * ones, ones, 2 * ones)
    book.add(0, first)
    book.add(0, second)
    book.add(1, gains.Measured(torch.tensor([7.0]), *[torch.ones(1, 2)] * 4))
    gain, error, energy, kronecker = book.means()
    old = 10 * gains.MEMORY
    assert gain[0, 0].tolist() == pytest.approx([(old + 3 * 20) / (old + 20)] * 3)
    assert gain[1, 0].tolist() == pytest.approx([3] * 3)
    assert error[0, 0, 0] == pytest.approx(math.sqrt(4 / (old + 20 - 1)))
    assert gain[:, 1, :2].tolist() == [[1, 1]] * 2  # one state counts for all
    assert energy[0, 0, 0] == pytest.approx(1)
    assert kronecker[0, 0, 0] == pytest.approx(2)
    assert not book.exists[1, 2]
    assert book.exists.sum() == 5


COST = torch.tensor([0.5, 0.5], dtype=torch.float64)


def test_without_knowledge_every_state_has_the_same_prefix():
    book = gains.Ledger(3, [6, 6])
    gain, error, _, kronecker = book.means()
    gain = gains.shrunk(gain, error, kronecker, COST, book.exists)
    for budget in (1, 2.5, 4, 6):
        settings = settle({"budget": budget}, 6)
        kept = gains.choose(gain, COST, torch.ones(3), settings).kept
        assert kept.sum(-1).unique().tolist() == [int(budget)]
        assert (kept.long().diff(dim=-1) <= 0).all()


def drawn(states, modules, rank, seed):
    """(gains, Kronecker curvatures, exists): curvatures differ by orders, gains from them by module and direction."""
    random = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=random, dtype=torch.float64)
    kronecker = normal(states, modules, rank).mul(1.5).exp()
    true = kronecker * normal(1, modules, 1).mul(0.3).exp() * normal(states, modules, rank).mul(0.2).exp()
    return true, kronecker, torch.ones(modules, rank, dtype=torch.bool)


def test_noise_decides_how_much_of_a_gain_is_believed():
    true, kronecker, exists = drawn(4, 2, 8, seed=0)
    shrunk = lambda error: gains.shrunk(true, torch.full_like(true, error), kronecker, COST, exists)
    torch.testing.assert_close(shrunk(1e-6), true, rtol=1e-6, atol=1e-6)
    blind = shrunk(1e4) / kronecker
    torch.testing.assert_close(blind, torch.full_like(blind, float(true.sum() / kronecker.sum())), rtol=1e-3, atol=0)
    distance = [float((shrunk(error) - true).norm()) for error in (0.1, 0.3, 1.0, 3.0)]
    assert distance == sorted(distance)
    assert distance[0] < distance[-1]


def test_what_was_not_seen_takes_the_mean_of_the_other_states_and_else_a_prefix():
    true, kronecker, exists = drawn(3, 2, 8, seed=1)
    error = torch.full_like(true, 1e-6)
    error[2, 0], error[:, 1] = math.inf, math.inf
    found = gains.shrunk(true, error, kronecker, COST, exists)
    torch.testing.assert_close(found[2, 0], true[:2, 0].mean(0), rtol=1e-5, atol=0)
    prefix = found[:, 1]
    assert prefix.equal(prefix[:1].expand_as(prefix))
    assert (prefix.diff(dim=-1) < 0).all()
    assert float(prefix[0, 0]) == pytest.approx(float(true[:2, 0].mean()))


def test_believed_gains_are_nearer_to_the_truth_than_measured_ones():
    worse, better = [], []
    for seed in range(10):
        true, kronecker, exists = drawn(4, 3, 16, seed)
        error = true + 1.0
        random = torch.Generator().manual_seed(seed + 100)
        measured = true + error * torch.randn(true.shape, generator=random, dtype=torch.float64)
        found = gains.shrunk(measured, error, kronecker, torch.ones(3, dtype=torch.float64), exists)
        worse.append(float((measured - true).abs().mean()))
        better.append(float((found - true).abs().mean()))
    assert sum(better) < 0.4 * sum(worse)


def test_a_choice_is_nearly_the_best_though_no_gain_is_known_well():
    true, kronecker, exists = drawn(12, 4, 16, seed=3)
    error = true + 0.5
    random = torch.Generator().manual_seed(4)
    measured = true + error * torch.randn(true.shape, generator=random, dtype=torch.float64)
    cost = torch.ones(4, dtype=torch.float64)
    settings = settle({"budget": 24, "mode": "spend", "bins": 6}, 64)

    def kept_of_the_truth(gain):
        kept = gains.choose(gain, cost, torch.ones(12), settings).kept
        return float(true[kept].sum() / true.sum())

    found = kept_of_the_truth(gains.shrunk(measured, error, kronecker, cost, exists))
    assert found > kept_of_the_truth(measured) + 0.05
    assert found > 0.98 * kept_of_the_truth(true)


def test_the_penalty_is_the_derivative_of_the_cost_s_share():
    gain, exists = torch.zeros(1, 2, 3, dtype=torch.float64), torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    cost = torch.tensor([1.0, 4.0], dtype=torch.float64)
    found = gains.penalised(gain, cost, exists, 2.2)
    assert found[0, :, 0].tolist() == pytest.approx([-2.2 / 11, -2.2 * 4 / 11])


def test_r_max_and_r_min_bound_every_state():
    torch.manual_seed(1)
    gain = torch.randn(4, 2, 8, dtype=torch.float64).abs()
    gain[0] *= 100
    gain[1] *= -1
    settings = settle({"r_min": 2, "r_max": 5, "budget": 4}, 8)
    found = gains.choose(gain, COST, torch.ones(4), settings)
    assert found.ranks[0].tolist() == [5, 5]
    assert found.ranks[1].tolist() == [2, 2]
    assert found.cost <= 4 * (1 + 1e-6)
    assert gain[0, 0][found.kept[0, 0]].min() > gain[0, 0][~found.kept[0, 0]].max()
