"""The scalars of a step against plain arithmetic; they change no bit, wait for nothing, and can be taken off."""

import math

import pytest
import torch
from accelerate import Accelerator

from hina_kohya import AdaptiveHinaAdamW, COptim, HinaAdamW
from hina_kohya.trainers import hooks, scalars, watcher
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import log_every, take
from hina_kohya.trainers.step_logs import step_logs
from tests.support.chains import chains_of
from tests.support.counting import Counter
from tests.support.stepping import make_params, set_grads

SHAPES = {
    f"lora_unet_{module}.{part}.weight": shape
    for module in ("down_blocks_0_attentions_0_to_q", "down_blocks_0_attentions_1_to_q", "mid_block_attentions_0_to_q")
    for part, shape in (("lora_down", (4, 12)), ("lora_up", (10, 4)))
} | {"lora_te_text_model_encoder_layers_3_mlp_fc1.lora_down.weight": (4, 8)}
DOWN, MID, TEXT = "unet down_blocks 0", "unet mid_block", "te1 layers 3"
NAMES = ("text", "unet")  # of the groups
CAUTIOUS = {"use_lora_muon": False, "weight_decay": 0.0, "state": "fp32"}  # Cautious is on, and has the pairs, too


@pytest.fixture(autouse=True)
def off():
    yield
    scalars.release()


def groups_of(params, rates=(1e-3, 2e-3)):
    text = {name: param for name, param in params.items() if name.startswith("lora_te")}
    unet = {name: param for name, param in params.items() if name not in text}
    return [{"params": list(part.items()), "lr": rate} for part, rate in zip((text, unet), rates, strict=True)]


def after(optimizer, params, steps=1, every=1, names=NAMES, scale=1.0):
    """The scalars that were logged after each step; measuring starts before the first."""
    logged = [scalars.read(optimizer, every, names)]
    for step in range(steps):
        set_grads(params, step, scale=scale)
        optimizer.step()
        logged.append(scalars.read(optimizer, every, names))
    assert logged[0] == {}
    return logged[1:]


def torch_adamw(groups):
    return torch.optim.AdamW(groups)


def ours(groups, **options):
    return HinaAdamW(groups, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("make", [torch_adamw, ours])
def test_norms_and_ratios_by_block(make, dtype):
    params = make_params(dtype, shapes=SHAPES)
    optimizer = make(groups_of(params))
    after(optimizer, params)
    before = {name: param.detach().clone().double() for name, param in params.items()}
    set_grads(params, 1)
    del_grad = next(name for name in params if "mid_block" in name)
    params[del_grad].grad = None
    optimizer.step()
    logged = scalars.read(optimizer, 1, NAMES)
    for block, words in ((DOWN, "down_blocks_0"), (MID, "mid_block"), (TEXT, "lora_te_")):
        own = [name for name in params if words in name]
        weight = math.sqrt(sum(params[name].double().square().sum().item() for name in own))
        change = math.sqrt(sum((params[name].double() - before[name]).square().sum().item() for name in own))
        assert change > 0
        assert logged[f"hina/weight_norm/{block}"] == pytest.approx(weight, rel=1e-5)
        assert logged[f"hina/update_ratio/{block}"] == pytest.approx(change / weight, rel=1e-2)
    assert len([tag for tag in logged if tag.startswith("hina/update_ratio/")]) == 3
    assert scalars.read(optimizer, 1, NAMES) == {}  # a step is logged once


def test_parameters_without_names_are_one_block():
    params = make_params(shapes=SHAPES)
    (logged,) = after(torch.optim.AdamW(params.values()), params, names=("unet",))
    assert set(logged) == {f"hina/weight_norm/{scalars.UNNAMED}", f"hina/update_ratio/{scalars.UNNAMED}"}


def test_what_optimizers_of_ours_know_besides():
    params = make_params(shapes=SHAPES)
    optimizer = ours(groups_of(params), use_alora=True)
    *_, logged = after(optimizer, params, steps=2)
    rates = [logged[f"hina/effective_lr/{name}"] for name in NAMES]
    assert rates == pytest.approx(optimizer.effective_lr)
    assert rates[1] > 2e-3  # LoRA+ is in it
    assert logged["hina/skipped"] == 0
    assert "hina/spikes" not in logged


def test_the_share_that_cautious_keeps():
    """An entry that moves is one that was kept, since nothing decays."""
    params = make_params(shapes=SHAPES)
    optimizer = ours(groups_of(params), **CAUTIOUS)
    after(optimizer, params, steps=4)
    before = {name: param.detach().clone() for name, param in params.items()}
    set_grads(params, 4)
    optimizer.step()
    logged = scalars.read(optimizer, 1, NAMES)
    for group, is_text in (("text", True), ("unet", False)):
        moved = [params[name] != before[name] for name in params if name.startswith("lora_te") is is_text]
        share = sum(each.sum().item() for each in moved) / sum(each.numel() for each in moved)
        assert 0.3 < share < 0.95
        assert logged[f"hina/cautious_kept/{group}"] == pytest.approx(share, abs=1e-6)


def test_the_importance_of_a_block():
    """The mean over its entries of |p g|, averaged over two steps with a decay of 3 / 4, bias corrected."""
    params = make_params(shapes=SHAPES)
    optimizer = AdaptiveHinaAdamW(groups_of(params), importance_decay=0.75)
    assert scalars.read(optimizer, 1, NAMES) == {}
    products = []
    for step in range(2):
        set_grads(params, step)
        products.append({name: (p.detach() * p.grad).double().abs().flatten() for name, p in params.items()})
        optimizer.step()
    logged = scalars.read(optimizer, 1, NAMES)
    for block, mark in ((DOWN, "down_blocks_0"), (MID, "mid_block"), (TEXT, "lora_te")):
        first, second = (torch.cat([own[name] for name in params if mark in name]).mean().item() for own in products)
        average = (0.25 * 0.75 * first + 0.25 * second) / (1 - 0.75**2)
        assert logged[f"hina/importance/{block}"] == pytest.approx(average, rel=1e-5)
    assert len([tag for tag in logged if "importance" in tag]) == 3


def test_no_importance_where_nothing_measures_it():
    params = make_params(shapes=SHAPES)
    for optimizer in (ours(groups_of(params)), torch_adamw(groups_of(params))):
        *_, logged = after(optimizer, params)
        assert not [tag for tag in logged if "importance" in tag]


def test_no_share_where_cautious_does_not_act():
    params = make_params(shapes=SHAPES)
    *_, logged = after(ours(groups_of(params)), params, steps=2)
    assert {tag for tag in logged if "cautious" in tag} == {"hina/cautious_kept/text"}  # the pairs are LoRA-Muon's


DECAYS = [{}, {"use_lora_muon": False}, {"dynamic_weight_decay": True}, {"use_cautious_weight_decay": True}]


@pytest.mark.parametrize("more", DECAYS, ids=str)
def test_the_share_that_decay_takes(more):
    """Two optimizers at the same place, one without decay: what they differ by after a step."""
    stepped = {}
    for decay in (0.0, 0.1):
        params = make_params(shapes=SHAPES)
        before = {name: param.detach().clone() for name, param in params.items()}
        (logged,) = after(ours(groups_of(params), weight_decay=decay, state="fp32", **more), params)
        stepped[decay] = {name: param.detach().double() for name, param in params.items()}
    for group, is_text in (("text", True), ("unet", False)):
        own = [name for name in before if name.startswith("lora_te") is is_text]
        taken = math.sqrt(sum((stepped[0.0][name] - stepped[0.1][name]).square().sum().item() for name in own))
        size = math.sqrt(sum(before[name].square().sum().item() for name in own))
        assert taken > 0
        assert logged[f"hina/decay/{group}"] == pytest.approx(taken / size, rel=1e-2)


def test_no_decay_is_not_logged():
    params = make_params(shapes=SHAPES)
    *_, logged = after(ours(groups_of(params), weight_decay=0.0), params, steps=2)
    assert not any("decay" in tag for tag in logged)


def test_a_gradient_that_is_not_finite_is_in_no_share():
    params = make_params(shapes=SHAPES)
    optimizer = ours(groups_of(params), **CAUTIOUS)
    after(optimizer, params, steps=2)
    set_grads(params, 2)
    for name, param in params.items():
        if "mid_block" in name or name.startswith("lora_te"):
            param.grad[0, 0] = math.nan
    optimizer.step()
    logged = scalars.read(optimizer, 1, NAMES)
    assert 0.3 < logged["hina/cautious_kept/unet"] < 1
    assert "hina/cautious_kept/text" not in logged
    assert logged["hina/skipped"] == 3
    assert logged[f"hina/update_ratio/{TEXT}"] == 0


def test_the_contextual_cautious_is_looked_at_too():
    params = make_params(shapes=SHAPES)
    *_, logged = after(COptim(groups_of(params)), params, steps=3)
    assert all(0.3 < logged[f"hina/cautious_kept/{group}"] < 0.95 for group in NAMES)


def test_skipped_steps_and_spikes():
    params = make_params(shapes=SHAPES)
    optimizer = COptim(groups_of(params), edge_suppression=True)
    after(optimizer, params, steps=30)
    set_grads(params, 30, scale=1e3)
    next(iter(params.values())).grad.fill_(math.nan)
    optimizer.step()
    logged = scalars.read(optimizer, 1, NAMES)
    assert logged["hina/skipped"] == 1
    assert logged["hina/spikes"] == len(params) - 1
    assert logged["hina/spikes"] == optimizer.get_optimization_info()["training_stats"]["gradient_spikes"]


def test_every_third_step():
    params = make_params(shapes=SHAPES)
    logged = after(torch_adamw(groups_of(params)), params, steps=7, every=3)
    assert [bool(each) for each in logged] == [False, False, True, False, False, True, False]


OPTIONS = {
    "AdamW": torch_adamw,
    "HinaAdamW": ours,
    "cautious": lambda groups: ours(groups, **CAUTIOUS),
    "contextual": lambda groups: COptim(groups, edge_suppression=True),
    "rate": lambda groups: ours(groups, use_auto_lr=True),
}


def trained(make, dtype, every):
    params = make_params(dtype, shapes=SHAPES)
    optimizer = make(groups_of(params))
    for step in range(5):
        set_grads(params, step)
        if step % 2:
            next(iter(params.values())).grad = None
        optimizer.step()
        if every:
            scalars.read(optimizer, every, NAMES)
    state = optimizer.state_dict()["state"]
    kept = [value for entry in state.values() for value in entry.values() if isinstance(value, torch.Tensor)]
    return [*params.values(), *kept]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_no_bit_of_the_training_changes(name, dtype):
    without, measured = (trained(OPTIONS[name], dtype, every) for every in (0, 1))
    assert len(without) == len(measured) > len(SHAPES)
    assert all(torch.equal(one, other) for one, other in zip(without, measured, strict=True))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_measured_step_waits_for_nothing(name):
    params = make_params(torch.bfloat16, shapes=SHAPES)
    optimizer = OPTIONS[name](groups_of(params))
    after(optimizer, params, steps=2)
    set_grads(params, 2)
    with Counter() as plain_step:
        scalars.release()
        optimizer.step()
    scalars.read(optimizer, 1, NAMES)
    set_grads(params, 3)
    with Counter() as counter:
        optimizer.step()
    expected = plain_step.synchronisations  # torch's own AdamW reads its steps on the CPU
    assert counter.synchronisations == expected
    assert name == "AdamW" or expected == []
    assert counter.operations > plain_step.operations
    assert scalars.read(optimizer, 1, NAMES)


def test_a_compiled_chain_is_left_alone():
    counted = watcher.Watcher()
    compiled = object()

    class Bucket:
        chain = chains_of(HinaAdamW(make_params(shapes=SHAPES).items(), **CAUTIOUS))[0]

    assert any(technique.name == "cautious" for technique in Bucket.chain)
    assert counted(Bucket, [0], compiled) is compiled


def test_taken_off():
    params = make_params(shapes=SHAPES)
    optimizer, other = ours(groups_of(params), **CAUTIOUS), torch_adamw(groups_of(make_params(shapes=SHAPES)))
    for each in (optimizer, other):
        assert scalars.read(each, 1, NAMES) == {}
        assert len(each._optimizer_step_pre_hooks) == len(each._optimizer_step_post_hooks) == 1
    hooks.uninstall()
    for each in (optimizer, other):
        assert not each._optimizer_step_pre_hooks
        assert not each._optimizer_step_post_hooks
    set_grads(params, 0)
    optimizer.step()
    assert optimizer.watcher is None


def test_a_step_that_fails_leaves_nothing_behind():
    params = make_params(shapes=SHAPES)
    optimizer = ours(groups_of(params), **CAUTIOUS)
    after(optimizer, params)
    param = next(iter(params.values()))
    param.grad = param.detach().to_sparse()
    with pytest.raises(RuntimeError, match="use dense ones"):
        optimizer.step()
    assert scalars.read(optimizer, 1, NAMES) == {}
    set_grads(params, 1)
    optimizer.step()
    assert scalars.read(optimizer, 1, NAMES)["hina/skipped"] == 0


def test_two_optimizers_do_not_mix():
    one, two = make_params(shapes=SHAPES), make_params(shapes=SHAPES, seed=5)
    first, second = ours(groups_of(one)), torch_adamw(groups_of(two))
    (left,), (right,) = after(first, one), after(second, two)
    norm = math.sqrt(sum(param.square().sum().item() for name, param in two.items() if "mid_block" in name))
    assert right[f"hina/weight_norm/{MID}"] == pytest.approx(norm)
    assert left[f"hina/weight_norm/{MID}"] != pytest.approx(norm)


class Wrapper(torch.optim.Optimizer):
    """As schedulefree's: torch's constructor is not called."""

    def __init__(self, inner):
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure=None):
        self.inner.step()


def test_an_optimizer_without_hooks_is_named_once(caplog):
    params = make_params(shapes=SHAPES)
    wrapper = Wrapper(torch.optim.SGD(params.values(), lr=1e-3))
    assert [after(wrapper, params, steps=2, names=("unet",)), len(caplog.records)] == [[{}, {}], 1]
    assert "Wrapper does not run torch's step hooks" in caplog.text


class Settings:
    def __init__(self, *words):
        self.network_args = list(words)


def logs_of(optimizer, descriptions, *words):
    """What the wrapped function of a trainer returns."""
    rates = {f"lr/{number}": group["lr"] for number, group in enumerate(optimizer.param_groups)}
    args = (Settings(*words), 1.0, 1.0, None, descriptions, optimizer)
    return step_logs(lambda *_: dict(rates), None, args, {})


@pytest.mark.parametrize(
    ("descriptions", "names"),
    [
        (["textencoder 1 ", "unet"], ["textencoder 1", "unet"]),
        (["textencoder 1", "textencoder 1"], ["textencoder 1", "textencoder 1 1"]),
        (["unet"], ["0", "1"]),
        (None, ["0", "1"]),
    ],
)
def test_the_trainers_function_and_accelerates_wrapper(descriptions, names):
    params = make_params(shapes=SHAPES)
    optimizer = Accelerator(cpu=True).prepare(ours(groups_of(params)))
    assert "hina/skipped" not in logs_of(optimizer, descriptions, "log_every=1")
    set_grads(params, 0)
    optimizer.step()
    logged = logs_of(optimizer, descriptions, "log_every=1")
    assert {tag for tag in logged if "effective" in tag} == {f"hina/effective_lr/{name}" for name in names}
    assert logged["lr/0"] == 1e-3


def test_off_by_zero_and_ten_by_itself():
    params = make_params(shapes=SHAPES)
    optimizer = ours(groups_of(params))
    logs_of(optimizer, None, "log_every=0")
    assert not optimizer._optimizer_step_pre_hooks
    logs_of(optimizer, None)
    assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert [log_every(None), log_every(["a=b=c", "log_every=3"]), log_every(["log_every=0"])] == [10, 3, 0]


@pytest.mark.parametrize("value", ["-1", "2.5", "often", ""])
def test_other_values_are_refused_when_the_network_is_made(value):
    with pytest.raises(UserError, match="whole number of steps, at least 0; write log_every=10"):
        take({"log_every": value})
    assert take({"log_every": "5", "algo": "lokr"})[1] == {"algo": "lokr"}
