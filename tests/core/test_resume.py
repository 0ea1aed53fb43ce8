"""Checkpoints: exact, by name, through files and accelerate, and refused with one clear error where they do not fit."""

import logging

import pytest
import torch
from accelerate import Accelerator

from hina_kohya import HinaAdamW
from tests.support.chains import CHAINS, STATES, chains_of
from tests.support.checkpoints import copy_of, through_file
from tests.support.combinations import in_pairs, same
from tests.support.promises import DTYPES
from tests.support.stepping import make_params, set_grads, train


@in_pairs(("chain", "state", "dtype"), CHAINS, same(STATES), {**DTYPES, "fp16": torch.float16})
def test_k_and_k_is_2k(state, dtype, chain):
    params = make_params(dtype)
    optimizer = HinaAdamW(params.items(), lr=1e-3, state=state, **chain)
    train(optimizer, params, 4)
    saved, resumed = through_file(optimizer.state_dict()), copy_of(params)
    train(optimizer, params, 4, start=4)
    second = HinaAdamW(resumed.items(), lr=1e-3, state=state, **chain)
    second.load_state_dict(saved)
    train(second, resumed, 4, start=4)
    for name in params:
        assert torch.equal(params[name], resumed[name]), name
    first_state, second_state = optimizer.state_dict(), second.state_dict()
    for index, entry in first_state["state"].items():
        for key, value in entry.items():
            other = second_state["state"][index][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


def test_anchor_of_spd_survives():
    """Without the saved anchor, a resumed run would be pulled towards where it was resumed."""
    shapes = {"head.weight": (7, 5)}
    params = make_params(shapes=shapes)
    start = params["head.weight"].detach().clone()
    optimizer = HinaAdamW(params.items(), lr=1e-2, use_spd=True, spd_lambda=1.0)
    train(optimizer, params, 5)
    resumed = copy_of(params)
    second = HinaAdamW(resumed.items(), lr=1e-2, use_spd=True, spd_lambda=1.0)
    second.load_state_dict(through_file(optimizer.state_dict()))
    train(second, resumed, 1, start=5)
    anchor = second.state[resumed["head.weight"]]["spd.anchor"]
    assert torch.equal(anchor, start)
    assert not torch.equal(anchor, params["head.weight"])


def test_tensors_are_placed_untouched():
    """torch's own loader would cast fp32 moments and 8-bit codes to the parameter's bf16."""
    params = make_params(torch.bfloat16)
    for state, dtypes in (("8bit", {torch.int8, torch.uint8, torch.float32}), ("fp32", {torch.float32})):
        dtypes = {*dtypes, torch.int32}  # of the step
        optimizer = HinaAdamW(params.items(), lr=1e-3, state=state)
        train(optimizer, params, 2)
        second = HinaAdamW(copy_of(params).items(), lr=1e-3, state=state)
        second.load_state_dict(through_file(optimizer.state_dict()))
        found = {v.dtype for entry in second.state.values() for v in entry.values() if isinstance(v, torch.Tensor)}
        assert found == dtypes


def test_state_views_are_not_copies():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, state="fp32", use_lora_muon=False)
    train(optimizer, params, 1)
    for name, param in params.items():
        moment = optimizer.state[param]["adam.exp_avg"]
        assert moment.shape == param.shape
        before = moment.clone()
        train(optimizer, {name: param}, 1, start=3)
        assert not torch.equal(moment, before)


def test_empty_reload_of_accelerate_prepare():
    param = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Accelerator(cpu=True).prepare(HinaAdamW([("lora_unet_a.lora_down.weight", param)], lr=1e-2))
    param.grad = torch.ones(4, 4)
    optimizer.step()
    assert (param < 1).all()
    assert [member.role.name for member in optimizer.optimizer.members] == ["lora_down"]


def test_order_changed_between_runs_is_mapped_by_name():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    train(optimizer, params, 3)
    order = sorted(params, reverse=True)
    shuffled = {name: torch.nn.Parameter(params[name].detach().clone()) for name in order}
    second = HinaAdamW(
        [{"params": [(n, shuffled[n]) for n in order[:6]]}, {"params": [(n, shuffled[n]) for n in order[6:]]}]
    )
    second.load_state_dict(through_file(_split(optimizer.state_dict(), 6)))
    second.plan()
    for name in params:
        mine, theirs = optimizer.state[params[name]], second.state[shuffled[name]]
        assert all(torch.equal(mine[key], theirs[key]) for key in mine if key != "step")
        assert theirs["step"] == 3
    assert [name for group in second.param_groups for name in group["param_names"]] == order


def _split(state_dict, size):
    """The same checkpoint with its one group cut in two."""
    (group,) = state_dict["param_groups"]
    cut = lambda part: {key: value[part] if key in ("params", "param_names") else value for key, value in group.items()}
    return {**state_dict, "param_groups": [cut(slice(None, size)), cut(slice(size, None))]}


def test_settings_come_from_the_checkpoint_unless_overridden(caplog):
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, weight_decay=0.01, betas=(0.9, 0.99))
    train(optimizer, params, 2)
    saved = through_file(optimizer.state_dict())
    for override, decay, beta in ((False, 0.01, 0.99), (True, 0.2, 0.95)):
        caplog.clear()
        second = HinaAdamW(
            copy_of(params).items(), lr=5e-4, weight_decay=0.2, betas=(0.9, 0.95), override_hyperparameters=override
        )
        with caplog.at_level(logging.WARNING):
            second.load_state_dict(saved)
        group = second.param_groups[0]
        assert (group["weight_decay"], group["techniques"]["adam"]["beta2"]) == (decay, beta)
        assert group["lr"] == (5e-4 if override else 1e-3)
        mine, theirs = "weight_decay = 0.2", "weight_decay = 0.01"
        assert (mine if override else theirs) in caplog.text
        assert ("adam.beta2 = 0.95" if override else "adam.beta2 = 0.99") in caplog.text
        chains = {technique.beta2 for chain in chains_of(second) for technique in chain if technique.name == "adam"}
        assert chains == {beta}


@pytest.mark.parametrize("target", STATES)
@pytest.mark.parametrize("source", STATES)
def test_another_codec_takes_over_the_values(source, target):
    params = make_params(shapes={"lora_unet_a.lora_up.weight": (40, 20)})
    optimizer = HinaAdamW(params.items(), lr=1e-3, state=source, use_lora_muon=False)
    train(optimizer, params, 5)
    second = HinaAdamW(copy_of(params).items(), lr=1e-3, state=target, use_lora_muon=False)
    second.load_state_dict(through_file(optimizer.state_dict()))
    for slot in ("exp_avg", "exp_avg_sq"):
        mine, theirs = (
            o.plan().buckets[0].slabs["adam", slot].read(slice(None), torch.float32) for o in (optimizer, second)
        )
        width = 0.06 if "8bit" in (source, target) and source != target else 0.01  # of a code
        assert (mine - theirs).abs().max() <= width * mine.abs().max()


def test_what_does_not_fit_is_refused_before_anything_changes():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, use_muon=True)
    train(optimizer, params, 1)
    saved = through_file(optimizer.state_dict())
    other = make_params(shapes={"lora_unet_z.lora_up.weight": (10, 4)})
    with pytest.raises(ValueError, match="1 of 1 parameters are not in the checkpoint, 'lora_unet_z"):
        HinaAdamW(other.items()).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"1 param groups, this run has 2"):
        HinaAdamW([{"params": list(params.values())[:3]}, {"params": list(params.values())[3:]}]).load_state_dict(saved)
    wider = make_params(
        shapes={name: (8, *shape[1:]) if len(shape) > 1 else shape for name, shape in _shapes().items()}
    )
    second = HinaAdamW(wider.items(), lr=1e-3, use_muon=True)
    train(second, wider, 1)
    before = through_file(second.state_dict())
    with pytest.raises(
        ValueError, match=r"lora_unet_a.lora_down.weight has 96 values, the checkpoint's muon.exp_avg 48"
    ):
        second.load_state_dict(saved)
    train(second, wider, 1, start=1)
    assert before["state"].keys() == second.state_dict()["state"].keys()
    adamw = torch.optim.AdamW(params.values())
    set_grads(params, 0)
    adamw.step()
    with pytest.raises(ValueError, match="saved by another optimizer"):
        HinaAdamW(params.values()).load_state_dict(adamw.state_dict())


@pytest.mark.parametrize("state", STATES)
def test_state_of_another_size_than_the_parameter(state):
    """LoRA-RITE keeps an average in the basis of the partner, whose other side may be smaller than the rank."""
    shapes = {"lora_unet_a.lora_down.weight": (8, 12), "lora_unet_a.lora_up.weight": (3, 8)}
    params = make_params(shapes=shapes)
    optimizer = HinaAdamW(params.items(), lr=1e-3, state=state, use_lora_rite=True)
    train(optimizer, params, 2)
    saved, resumed = through_file(optimizer.state_dict()), copy_of(params)
    train(optimizer, params, 2, start=2)
    second = HinaAdamW(resumed.items(), lr=1e-3, state=state, use_lora_rite=True)
    second.load_state_dict(saved)
    assert second.plan().buckets[0].slabs["lora_rite", "exp_avg"].m == 12
    assert second.plan().buckets[0].slabs["lora_rite", "exp_avg"].n == 3
    train(second, resumed, 2, start=2)
    assert all(torch.equal(params[name], resumed[name]) for name in params)
    wider = make_params(shapes={"lora_unet_a.lora_down.weight": (8, 12), "lora_unet_a.lora_up.weight": (5, 8)})
    with pytest.raises(ValueError, match=r"lora_down.weight has 60 values, the checkpoint's lora_rite.exp_avg 36"):
        HinaAdamW(wider.items(), lr=1e-3, state=state, use_lora_rite=True).load_state_dict(saved)


def _shapes():
    return {name: tuple(param.shape) for name, param in make_params().items()}


def test_reordering_a_chain_does_not_break_a_checkpoint():
    """State is keyed by technique and slot, never by a position."""
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, use_tam=True, use_lora_muon=False)
    train(optimizer, params, 2)
    saved = through_file(optimizer.state_dict())
    keys = set(saved["state"][0])
    assert keys == {
        "step",
        "adam.exp_avg",
        "adam.exp_avg.scale",
        "adam.exp_avg_sq",
        "adam.exp_avg_sq.scale",
        "tam.torque",
    }
    second = HinaAdamW(
        copy_of(params).items(), lr=1e-3, use_tam=True, use_lora_muon=False, use_agr=True, override_hyperparameters=True
    )
    second.load_state_dict(saved)
    train(second, params, 1)


def test_scheduler_moves_on_after_resume():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(optimizer, params, 1)
    scheduler.step()
    second = HinaAdamW(copy_of(params).items(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(second, lambda step: 1 / (1 + step))
    second.load_state_dict(through_file(optimizer.state_dict()))
    assert second.param_groups[0]["lr"] == 5e-4
    assert second.param_groups[0]["initial_lr"] == 1e-3
