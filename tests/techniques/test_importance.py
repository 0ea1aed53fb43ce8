"""Importance against its oracle, and what a technique that compares matrices must not do."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.optim import report
from tests.oracles.compose import ComposedStep
from tests.oracles.importance import Sensitivity, multipliers
from tests.support import promises
from tests.support.chains import states
from tests.support.oracle_runs import DECAY, LR, close, rate
from tests.support.stepping import make_params, set_grads, train

GROUPS = (
    {
        "lora_unet_a.lora_down.weight": (4, 6),
        "lora_unet_a.lora_up.weight": (5, 4),
        "lora_unet_b.lora_down.weight": (4, 6),
        "head.weight": (7, 5),
        "vector": (16,),
    },
    {
        "lora_unet_b.lora_up.weight": (5, 4),  # tied to a parameter of the other group
        "lora_unet_k.lokr_w1": (2, 2),
        "lora_unet_k.lokr_w2_a": (6, 2),
        "lora_unet_k.lokr_w2_b": (2, 5),
        "gain": (1,),
        "kernel.weight": (4, 3, 3, 3),
    },
)
SHAPES = {name: shape for group in GROUPS for name, shape in group.items()}


def chain(**options):
    return [build("adam"), build("weight_decay"), build("importance", **options)]


def make(params, state="fp32", groups=GROUPS, lr=LR, **options):
    split = [{"params": [(name, params[name]) for name in group if name in params]} for group in groups]
    return HinaOptimizer(split, chain(**options), lr=lr, weight_decay=DECAY, state=state, decay_roles="all")


def factors(optimizer):
    """The multipliers of the next step, by name."""
    (pooling,) = optimizer.plan().poolings()
    table = pooling.technique.pool(pooling.table()).flatten()
    return {m.name: float(table[pooling.places[i]]) for i, m in enumerate(optimizer.members)}


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


@pytest.mark.parametrize(
    "options", [{}, {"beta": 0.5}, {"strength": 4.0, "bound": 1.5}, {"strength": -0.7, "bound": 8.0}], ids=str
)
def test_it_is_its_oracle(options):
    """Over ties within and across groups, a zero start, and parameters without gradient at some steps, or any."""
    params = make_params(torch.float64, shapes=SHAPES)
    names = list(SHAPES)
    with torch.no_grad():
        params["lora_unet_a.lora_up.weight"].zero_()
    oracle = {name: ComposedStep(weight_decay=DECAY) for name in names}
    sensitivity = {name: Sensitivity(options.get("beta", 0.95)) for name in names}
    found = {name: param.detach().numpy().copy() for name, param in params.items()}
    optimizer = make(params, **options)
    places = {name: i for i, name in enumerate(names)}
    ties = [
        [places[other] for other in names if other != name and "lora_unet_" in name and other[:11] == name[:11]]
        for name in names
    ]
    how = {key: value for key, value in options.items() if key != "beta"}
    for step in range(30):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate(step)
        set_grads(params, step, scale=10.0 ** (step % 5))
        for param in params.values():
            param.grad[: len(param) // 3] = 0  # what has no gradient, as here a third of the rows, does not count
        for index, param in enumerate(params.values()):
            if (index + step) % 7 == 0 or index == 3:
                param.grad = None
        values = [sensitivity[name].value for name in names]
        expected = multipliers(values, [name in GROUPS[1] for name in names], ties, **how)
        for name, multiplier in zip(names, expected, strict=True):
            if params[name].grad is not None:
                g = params[name].grad.numpy()
                sensitivity[name].see(found[name], g)
                found[name] = oracle[name].step(found[name], g, rate(step), multiplier)
        optimizer.step()
    for name in names:
        close(params[name].detach().numpy(), found[name])
    assert min(expected) < 0.9
    assert max(expected) > 1.1


def test_the_learning_rate_is_moved_and_never_changed():
    params = make_params(shapes=SHAPES)
    optimizer = make(params)
    assert set(factors(optimizer).values()) == {1.0}
    for step in range(6):
        train(optimizer, params, 1, start=step)
        now = factors(optimizer)
        for group in GROUPS:
            assert geometric_mean([now[name] for name in group]) == pytest.approx(1, abs=1e-12)
        assert 1.1 < max(now.values()) <= 4
        assert now["lora_unet_a.lora_down.weight"] == now["lora_unet_a.lora_up.weight"]  # a pair is not torn apart
        assert len({now[name] for name in SHAPES if "lokr" in name}) == 1


def test_what_has_no_signal_gets_one_and_does_not_count():
    shapes = {f"m{i}.weight": (3, 4) for i in range(4)}
    params = make_params(shapes=shapes)
    optimizer = make(params, groups=(shapes,))
    for step in range(3):
        set_grads(params, step)
        params["m0.weight"].grad = None
        params["m1.weight"].grad.zero_()
        optimizer.step()
    now = factors(optimizer)
    assert now["m0.weight"] == now["m1.weight"] == 1
    assert now["m2.weight"] * now["m3.weight"] == pytest.approx(1, abs=1e-12)
    assert now["m2.weight"] != 1
    kept = optimizer.state[params["m2.weight"]]["importance.average"].clone()
    set_grads(params, 3)
    params["m2.weight"].grad = None
    optimizer.step()
    assert torch.equal(kept, optimizer.state[params["m2.weight"]]["importance.average"])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e38])
def test_a_sensitivity_that_is_not_finite_is_not_taken_over(value):
    params = make_params(shapes=SHAPES)
    optimizer = make(params)
    train(optimizer, params, 2)
    before = factors(optimizer)
    set_grads(params, 2)
    with torch.no_grad():
        params["head.weight"].fill_(10.0)
    params["head.weight"].grad.fill_(value)
    optimizer.step()
    train(optimizer, params, 3, start=3)
    now = factors(optimizer)
    assert all(math.isfinite(factor) for factor in now.values())
    assert all(param.isfinite().all() for param in params.values())
    assert 1 not in (before["head.weight"], now["head.weight"])  # what it was stays
    for group in GROUPS:
        assert geometric_mean([now[name] for name in group]) == pytest.approx(1, abs=1e-12)


def trained(params, steps=8, by_name=None, **how):
    optimizer = make(params, **how)
    for step in range(steps):
        for name, param in params.items():
            generator = torch.Generator().manual_seed(1000 * step + list(SHAPES).index(name))
            param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
            if by_name is not None:
                by_name(step, name, param.grad)
        optimizer.step()
    return {name: param.detach().clone() for name, param in params.items()}


def test_the_order_of_parameters_and_of_groups_does_not_matter():
    expected = trained(make_params(torch.float64, shapes=SHAPES))
    turned = tuple(dict(reversed(list(group.items()))) for group in reversed(GROUPS))
    found = trained(make_params(torch.float64, shapes=SHAPES), groups=turned)
    for name in SHAPES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-13)


def test_one_group_does_not_reach_another():
    """But for ties across them, which are there to do so."""
    alone = tuple({name: s for name, s in group.items() if "lora_unet_b" not in name} for group in GROUPS)
    results = []
    for scale in (1.0, 100.0):
        params = make_params(shapes={name: SHAPES[name] for group in alone for name in group})
        change = lambda step, name, grad, scale=scale: grad.mul_(
            scale * step if name in alone[1] and name != "gain" else 1
        )
        results.append(trained(params, groups=alone, by_name=change))
    assert all(torch.equal(results[0][name], results[1][name]) for name in alone[0])
    assert not torch.equal(results[0]["gain"], results[1]["gain"])


def test_the_scale_of_gradients_and_a_split_of_scale_do_not_matter():
    params = [make_params(torch.float64, shapes=SHAPES) for _ in range(3)]
    optimizers = [make(each, lr=0.0) for each in params]
    with torch.no_grad():
        for param in params[2].values():
            param.mul_(8)
    for step in range(4):
        for each, scale, optimizer in zip(params, (1, 1024, 1 / 8), optimizers, strict=True):
            set_grads(each, step, scale=scale)
            optimizer.step()
    expected, *others = map(factors, optimizers)
    for other in others:
        assert other == pytest.approx(expected, rel=1e-12)


def test_rows_and_columns_may_be_permuted():
    generator = torch.Generator().manual_seed(3)
    i, j = torch.randperm(7, generator=generator), torch.randperm(5, generator=generator)
    results = []
    for permute in (lambda x: x, lambda x: x[i][:, j]):
        params = make_params(torch.float64, shapes=SHAPES)
        with torch.no_grad():
            params["head.weight"].copy_(permute(params["head.weight"].clone()))
        change = lambda _step, name, grad, permute=permute: (
            grad.copy_(permute(grad.clone())) if name == "head.weight" else None
        )
        results.append(trained(params, by_name=change))
    torch.testing.assert_close(results[0]["head.weight"][i][:, j], results[1]["head.weight"], rtol=1e-12, atol=1e-13)


def without(params):
    groups = [{"params": [(name, params[name]) for name in group]} for group in GROUPS]
    return HinaOptimizer(groups, chain()[:2], lr=LR, weight_decay=DECAY, state="fp32", decay_roles="all")


@pytest.mark.parametrize(
    "options", [None, {"beta": 0.3}, {"strength": 0.3}, {"strength": -1.0}, {"bound": 1.2}], ids=str
)
def test_every_option_changes_the_update(options):
    other = without if options is None else partial(make, **options)
    promises.updates_differ(make, other, steps=5, shapes=SHAPES)


def test_without_strength_it_changes_no_bit():
    results = []
    for techniques in (chain()[:2], chain(strength=0.0)):
        params = make_params()
        optimizer = HinaOptimizer(params.items(), techniques, lr=LR, weight_decay=DECAY)
        train(optimizer, params, 5)
        results.append(params)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@promises.dtypes
@states
def test_k_and_k_is_2k(state, dtype):
    params = make_params(dtype, shapes=SHAPES)
    optimizer, second, _ = promises.resumes_exactly(partial(make, state=state), params)
    assert factors(optimizer) == factors(second)


def test_the_reported_learning_rate_is_the_moved_one():
    params = make_params(shapes=SHAPES)
    optimizer = make(params)
    assert report.effective_lr(optimizer) == pytest.approx([LR, LR])
    train(optimizer, params, 3)
    now = factors(optimizer)
    for _ in range(2):  # and asking changes nothing
        for reported, group in zip(report.effective_lr(optimizer), GROUPS, strict=True):
            sizes = {name: math.prod(shape) for name, shape in group.items()}
            mean = sum(size * now[name] for name, size in sizes.items()) / sum(sizes.values())
            assert reported == pytest.approx(LR * mean, rel=1e-6)


def test_operations_go_with_shapes_and_nothing_waits():
    one_group = lambda params: HinaOptimizer(params.items(), chain(), lr=LR, weight_decay=DECAY, state="fp32")
    assert promises.operations_go_with_shapes(one_group) <= 700


def test_chunks_do_not_change_a_bit(monkeypatch):
    promises.chunks_change_no_bit(monkeypatch, make, SHAPES, steps=8)


def test_the_oracle_keeps_its_mean():
    values = np.random.default_rng(0).lognormal(size=20) * np.arange(20).clip(max=1)
    found = multipliers(values, [i % 3 for i in range(20)], strength=3.0)
    assert found[0] == 1
    for group in range(3):
        assert geometric_mean([f for i, f in enumerate(found) if i % 3 == group and i]) == pytest.approx(1, abs=1e-12)
