"""`HinaAdamW(model.named_parameters())` with a frozen base model: it costs nothing, and thaws when asked to."""

import pytest
import torch
from torch import nn

from hina_kohya import AdaptiveHinaAdamW, AutomagicCameAMP, COptim, HinaAdamW
from tests.support.checkpoints import copy_of, through_file
from tests.support.stepping import make_params, set_grads, train

LORA = {"q.lora_A.default.weight": (4, 12), "q.lora_B.default.weight": (10, 4)}
BASE = {"q.base_layer.weight": (10, 12), "norm.weight": (12,), "k.weight": (12, 12)}
EXACT = {"lr": 1e-2, "state": "fp32"}  # nothing is rounded, so the number of a parameter does not matter


def model():
    """Adapters that are trained, in the midst of a base model that is not; a 4-bit weight is of bytes."""
    params = make_params(shapes={**dict([*BASE.items()][:1]), **LORA, **BASE})
    for name in BASE:
        params[name].requires_grad_(False)
    packed = nn.Parameter(torch.zeros(60, 1, dtype=torch.uint8), requires_grad=False)
    return {**params, "v.base_layer.weight": packed}


def step(optimizer, params, number):
    set_grads({name: params[name] for name in LORA}, number)
    optimizer.step()


@pytest.mark.parametrize("cls", [HinaAdamW, AdaptiveHinaAdamW, AutomagicCameAMP, COptim])
def test_frozen_parameters_cost_nothing_and_count_as_nothing(cls):
    params, alone = model(), make_params(shapes=LORA)
    for name in LORA:
        params[name].data.copy_(alone[name])
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer, other = cls(params.items(), **EXACT), cls(alone.items(), **EXACT)
    for number in range(4):
        step(optimizer, params, number)
        step(other, alone, number)
    assert all(torch.equal(params[name], alone[name]) for name in LORA)
    assert all(torch.equal(params[name], before[name]) for name in params if name not in LORA)
    assert optimizer.summary() == other.summary()
    assert optimizer.get_memory_efficiency_report() == other.get_memory_efficiency_report()
    assert optimizer.get_optimization_info() == other.get_optimization_info()
    assert optimizer.effective_lr == other.effective_lr
    assert {optimizer.members[i].name for i in optimizer.state_dict()["state"]} == set(LORA)


@pytest.mark.parametrize("state", ["8bit", "fp32"])
def test_a_thawed_parameter_is_trained_and_a_frozen_one_keeps_its_state(state):
    params = model()
    optimizer = HinaAdamW(params.items(), lr=1e-2, state=state)
    step(optimizer, params, 0)
    thawed, kept = params["k.weight"], params["q.lora_B.default.weight"]
    optimizer.state_dict()  # brings `step` up to date
    momentum = {key: torch.as_tensor(value).clone() for key, value in optimizer.state[kept].items()}
    thawed.requires_grad_(True)
    kept.requires_grad_(False)
    kept.grad = None
    before = thawed.detach().clone()
    set_grads({"k.weight": thawed}, 1)
    optimizer.step()
    assert not torch.equal(thawed, before)
    optimizer.state_dict()
    assert optimizer.state[thawed]["step"] == 1
    assert optimizer.state[kept].keys() == momentum.keys()
    assert all(torch.equal(torch.as_tensor(optimizer.state[kept][key]), value) for key, value in momentum.items())


def test_a_gradient_that_was_put_there_counts():
    """torch steps whatever has a gradient, and so do we."""
    params = model()
    optimizer = HinaAdamW(params.items(), **EXACT)
    before = params["k.weight"].detach().clone()
    set_grads({"k.weight": params["k.weight"]}, 0)
    optimizer.step()
    assert not torch.equal(params["k.weight"], before)


@pytest.mark.parametrize("technique", ["use_lora_rite", "use_allora_rows"])
def test_a_frozen_partner_is_still_looked_at(technique):
    """LoRA-FA trains B and holds A: B's step is what it would be beside an A that waits for its gradient."""
    results = []
    for frozen in (True, False):
        params = make_params(shapes=LORA)
        down, up = params.values()
        down.requires_grad_(not frozen)
        optimizer = HinaAdamW(params.items(), lr=1e-2, state="fp32", **{technique: True})
        for number in range(3):
            set_grads({"up": up}, number)
            optimizer.step()
        results.append(up)
    assert torch.equal(*results)


def test_resume():
    params = model()
    optimizer = HinaAdamW(params.items(), lr=1e-2)
    for number in range(3):
        step(optimizer, params, number)
    saved, resumed = through_file(optimizer.state_dict()), {}
    for name, param in params.items():
        resumed[name] = nn.Parameter(param.detach().clone(), requires_grad=param.requires_grad)
    second = HinaAdamW(resumed.items(), lr=1e-2)
    second.load_state_dict(saved)
    for number in range(3, 6):
        step(optimizer, params, number)
        step(second, resumed, number)
    assert all(torch.equal(params[name], resumed[name]) for name in params)


def test_a_checkpoint_of_a_parameter_that_is_frozen_now_is_kept():
    params = make_params(shapes=LORA)
    optimizer = HinaAdamW(params.items(), lr=1e-2)
    train(optimizer, params, 2)
    resumed = copy_of(params)
    down = resumed["q.lora_A.default.weight"].requires_grad_(False)
    second = HinaAdamW(resumed.items(), lr=1e-2)
    second.load_state_dict(through_file(optimizer.state_dict()))
    set_grads({"up": resumed["q.lora_B.default.weight"]}, 2)
    second.step()
    assert second.state[down]["step"] == 2
    first = optimizer.state_dict()["state"][0]
    assert all(torch.equal(torch.as_tensor(second.state[down][key]), torch.as_tensor(v)) for key, v in first.items())
