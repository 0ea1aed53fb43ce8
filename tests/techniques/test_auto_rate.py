"""The rate that is found, against its oracle and Prodigy itself, and what must not move it."""

import math

import numpy as np
import pytest
import torch

from hina_kohya import HinaAuto
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.optim import report
from hina_kohya.optim.report import found_rate
from tests.oracles.adamw import AdamW
from tests.oracles.prodigy import Rate
from tests.support import promises
from tests.support.chains import states
from tests.support.checkpoints import copy_of, through_file
from tests.support.stepping import make_params, set_grads, train

GROUPS = (
    {
        "lora_unet_a.lora_down.weight": (4, 6),
        "lora_unet_a.lora_up.weight": (5, 4),
        "lora_unet_c.lora_up.weight": (5, 4),
        "head.weight": (7, 5),
    },
    {"lora_unet_b.lora_up.weight": (5, 4), "lora_unet_k.lokr_w2": (6, 2), "gain": (1,), "kernel.weight": (4, 3, 3, 3)},
)
SHAPES = {name: shape for group in GROUPS for name, shape in group.items()}
FROM_ZERO = ("lora_unet_a.lora_up.weight", "lora_unet_b.lora_up.weight", "lora_unet_k.lokr_w2", "gain")
RIDES = ("lora_unet_a.lora_down.weight",)


def started(dtype=torch.float64, shapes=SHAPES):
    """Some start at zero; lora_unet_c was trained before."""
    params = make_params(dtype, shapes=shapes)
    with torch.no_grad():
        for name in FROM_ZERO:
            if name in params:
                params[name].zero_()
    return params


def make(params, state="fp32", rates=(1.0, 0.5), betas=(0.9, 0.999), decay=0.0, **options):
    groups = [
        {"params": [(name, params[name]) for name in group if name in params], "lr": rate}
        for group, rate in zip(GROUPS, rates, strict=True)
    ]
    adam = build("adam", beta1=betas[0], beta2=betas[1])
    chain = [adam, build("weight_decay"), build("auto_rate", **options)]
    return HinaOptimizer([group for group in groups if group["params"]], chain, lr=1.0, weight_decay=decay, state=state)


def downhill(params, step, target=0.05):
    """Noisy gradients of |x - target|^2 / 2, so that there is a distance to find."""
    set_grads(params, step)
    for param in params.values():
        param.grad = (param.detach() - target) + 0.01 * param.grad


def starts(optimizer):
    """Those of the parameters that add to the sums which are known to have started at zero."""
    return {m.name for m in optimizer.members if m.starts_at_zero and m.name not in RIDES}


SCHEDULE = (0.0, 0.5, 1.0, 1.0, 0.9, 0.7, 0.7, 0.0, 0.4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"coef": 0.5, "d0": 1e-5}, {"beta": 0.9, "d0": 1e-3}], ids=str)
def test_it_is_its_oracle(options):
    """Groups of two rates, a schedule with zeros, starts at zero and elsewhere, and a matrix without a gradient."""
    params = started()
    optimizer = make(params, decay=0.01, **options)
    rate, adam = Rate(**options), {name: AdamW() for name in SHAPES}
    where = {name: param.detach().numpy().copy() for name, param in params.items()}
    start = {name: value.copy() for name, value in where.items()}
    lr_of = {name: lr for group, lr in zip(GROUPS, (1.0, 0.5), strict=True) for name in group}
    decays = {m.name: m.role.decays for m in optimizer.members}
    for step in range(4 * len(SCHEDULE)):
        downhill(params, step)
        factor = SCHEDULE[step % len(SCHEDULE)]
        for group, lr in zip(optimizer.param_groups, (1.0, 0.5), strict=True):
            group["lr"] = lr * factor
        if step % 5 == 3:
            params["head.weight"].grad = None
        for name, param in params.items():
            if param.grad is None:
                continue
            g, lr = param.grad.numpy(), lr_of[name] * factor
            u = adam[name].direction(g)
            if name not in RIDES:
                rate.add(name, g, start[name] - where[name], u, lr)
            where[name] = where[name] * (1 - lr * rate.d * 0.01 * decays[name]) - lr * rate.d * u
        optimizer.step()
        rate.finish()
        for name, param in params.items():
            np.testing.assert_allclose(param.detach().numpy(), where[name], rtol=1e-8, atol=1e-12)
        assert found_rate(optimizer) == pytest.approx(rate.d, rel=1e-8)
    assert rate.d > 3 * options.get("d0", 3e-4)


@pytest.mark.slow
def test_with_sign_steps_it_is_prodigy():
    """Without averages Adam's step is the sign, and <s, u> the paper's norm while no gradient changes its sign."""
    from pytorch_optimizer import Prodigy

    ours, theirs = ({name: param for name, param in started().items() if name not in RIDES} for _ in range(2))
    options = {"d0": 1e-4, "beta3": 0.99, "d_coef": 0.7}
    prodigy = Prodigy(theirs.values(), lr=1.0, betas=(0.0, 0.0), weight_decay=0.0, eps=1e-30, **options)
    optimizer = make(ours, rates=(1.0, 1.0), betas=(0.0, 0.0), beta=0.99, d0=1e-4, coef=0.7)
    for step in range(40):
        for params, each in ((ours, optimizer), (theirs, prodigy)):
            for place, param in enumerate(params.values()):
                param.grad = torch.full_like(param, (place + 1) * (1 + 0.5 * math.sin(step))).cumsum(0)
            each.step()
        assert found_rate(optimizer) == pytest.approx(float(prodigy.param_groups[0]["d"]), rel=1e-5)
        for name, param in ours.items():
            torch.testing.assert_close(param, theirs[name], rtol=1e-4, atol=1e-6)
    assert found_rate(optimizer) > 10 * 1e-4


def path(make=make, scale=1.0, steps=25, params=None):
    params = started() if params is None else params
    optimizer = make(params)
    found = []
    for step in range(steps):
        downhill(params, step)
        for param in params.values():
            param.grad *= scale
        optimizer.step()
        found.append(found_rate(optimizer))
    return found, params


@pytest.mark.slow
def test_it_never_falls_and_does_not_depend_on_the_gradients_scale():
    found, _ = path()
    assert found == sorted(found)
    torch.testing.assert_close(path(scale=1e3)[0], found, rtol=1e-5, atol=0.0)


def test_only_the_ratio_of_the_groups_rates_matters_to_what_is_found():
    """The steps themselves grow with them, as Prodigy's do with its lr."""
    found, _ = path(steps=2)
    doubled, _ = path(lambda params: make(params, rates=(2.0, 1.0)), steps=2)
    assert doubled[0] == pytest.approx(found[0], rel=1e-9)
    assert doubled[1] != found[1]


@states
@promises.dtypes
def test_resumes_exactly_in_the_middle_of_a_run(state, dtype):
    """What had started at zero is not at zero any more, and must not get a copy of where it is."""
    params = started(dtype)
    optimizer = make(params, state)
    for step in range(6):
        downhill(params, step)
        optimizer.step()
    saved, resumed = through_file(optimizer.state_dict()), copy_of(params)
    second = make(resumed, state)
    second.load_state_dict(saved)
    for step in range(6, 12):
        for each, one in ((params, optimizer), (resumed, second)):
            downhill(each, step)
            one.step()
    assert found_rate(second) == found_rate(optimizer) > 3e-4
    assert all(torch.equal(params[name], resumed[name]) for name in params)
    assert starts(second) == starts(optimizer) == set(FROM_ZERO)


def test_what_starts_at_zero_needs_no_copy_of_its_start():
    optimizer = make(started())
    train(optimizer, {m.name: p for m, p in zip(optimizer.members, optimizer.params(), strict=True)}, 2)
    for member, param in zip(optimizer.members, optimizer.params(), strict=True):
        kept = {key.partition(".")[2] for key in optimizer.state[param] if key.startswith("auto_rate.")}
        expected = {"numbers"} if member.name in RIDES else {"numbers", "sum"}
        assert kept == (expected if member.name in (*FROM_ZERO, *RIDES) else expected | {"start"}), member.name


def test_cast_in_the_middle_of_a_run_it_still_knows_where_it_started():
    params = started(torch.float32)
    optimizer = make(params)
    for step in range(8):
        if step == 4:
            for param in params.values():
                param.data = param.data.bfloat16()
        downhill(params, step)
        optimizer.step()
    assert starts(optimizer) == set(FROM_ZERO)
    assert all("auto_rate.start" not in optimizer.state[params[name]] for name in FROM_ZERO)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e25])
def test_a_broken_gradient_moves_nothing_else(value):
    """Every number is the one of a run in which that matrix had no gradient at that step."""

    def trained(value):
        params = started(torch.float32)
        optimizer = make(params)
        for step in range(10):
            downhill(params, step)
            if step == 4:
                grad = params["lora_unet_a.lora_up.weight"].grad
                params["lora_unet_a.lora_up.weight"].grad = None if value is None else torch.full_like(grad, value)
            optimizer.step()
        return found_rate(optimizer), params

    (rate, params), (expected, others) = trained(value), trained(None)
    assert rate == expected > 3e-4
    assert all(torch.equal(params[name], others[name]) for name in params)


def test_it_costs_two_bytes_for_what_starts_at_zero():
    shapes = {f"lora_unet_m{i}.lora_{side}.weight": shape for i in range(4)
              for side, shape in (("down", (16, 640)), ("up", (640, 16)))}  # fmt: skip
    params = make_params(torch.float32, shapes=shapes)
    for name, param in params.items():
        param.data *= "down" in name
    optimizer = HinaAuto(params.items())
    train(optimizer, params, 1)
    assert report.memory(optimizer)["bytes_per_parameter"] <= 2.4


def test_a_rate_of_zero_leaves_what_was_measured_alone():
    params = started()
    optimizer = make(params)
    for step in range(5):
        downhill(params, step)
        optimizer.step()
    before = {name: optimizer.state[param]["auto_rate.numbers"].clone() for name, param in params.items()}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    downhill(params, 5)
    optimizer.step()
    for name, param in params.items():
        after = optimizer.state[param]["auto_rate.numbers"]
        assert torch.equal(before[name][..., 1:], after[..., 1:])


def test_effective_lr_has_it():
    found, params = path(steps=12)
    optimizer = make(params)
    assert found_rate(optimizer) == pytest.approx(3e-4)
    assert report.effective_lr(optimizer) == pytest.approx([3e-4, 1.5e-4])
    assert found[-1] > 3e-4


@pytest.mark.slow
def test_arguments_of_the_classes_reach_it():
    found = []
    for options in ({}, {"d_coef": 2.0}, {"d0": 1e-3}):
        params = started(torch.float32)
        optimizer = HinaAuto(params.items(), **options)
        for step in range(10):
            downhill(params, step)
            optimizer.step()
        found.append(optimizer.found_rate)
    assert len(set(found)) == 3
    assert found[1] > found[0] > 3e-4
