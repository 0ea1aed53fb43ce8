"""The contract with torch and the trainers: groups, schedulers, resuming, what is said."""

import copy
import logging
import math

import pytest
import torch
from torch.optim import lr_scheduler

from hina_kohya import AdaptiveHinaAdamW, AutomagicCameAMP, COptim, HinaAdamW
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.core.schedules import hold_rates
from tests.support.adamw import OFF
from tests.support.chains import chains_of
from tests.support.checkpoints import copy_of, through_file
from tests.support.stepping import make_params, set_grads, train

PAIR = {"lora_unet_a.lora_down.weight": (4, 12), "lora_unet_a.lora_up.weight": (10, 4)}


# Param groups


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"weight_decya": 0.1}, "has a key 'weight_decya', which means nothing here; did you mean weight_decay"),
        ({"beta": (0.9, 0.99)}, "has a key 'beta', which means nothing here; did you mean betas"),
        ({"eps": 1e-6}, "has a key 'eps', which means nothing here"),
        ({"lr": -1.0}, r"param group 0: lr = -1.0 is outside \[0, inf\)"),
        ({"lr": math.nan}, "param group 0: lr = nan is not a number"),
        ({"lr": torch.tensor(math.nan)}, "param group 0: lr = nan is not a number"),
        ({"lr": "1e-3"}, "param group 0: lr = '1e-3' is not a number"),
        ({"weight_decay": -0.1}, r"param group 0: weight_decay = -0.1 is outside \[0, inf\)"),
        ({"betas": (0.9, 1.0)}, r"param group 0: betas = 1.0 is outside \[0, 1\)"),
        ({"betas": 0.9}, r"param group 0: betas = 0.9 must be 2 numbers, such as \(0.9, 0.999\)"),
        ({"betas": (0.9, 0.99, 0.999)}, "must be 2 numbers"),
    ],
    ids=str,
)
def test_groups_have_known_keys_within_bounds(more, message):
    params = make_params()
    with pytest.raises(ValueError, match=message):
        HinaAdamW([{"params": params.items(), **more}])
    optimizer = HinaAdamW(params.items())
    more_params = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=message.replace("group 0", "group 1")):
        optimizer.add_param_group({"params": [("x", more_params)], **more})
    assert len(optimizer.param_groups) == 1


def test_what_trainers_put_into_groups_is_accepted():
    first, second = make_params(shapes=PAIR).items()
    groups = [
        {"params": [first], "lr": 1e-3, "initial_lr": 1e-3, "name": "unet", "decays": True},
        {"params": [second], "betas": [0.8, 0.99], "weight_decay": 0},
    ]
    optimizer = HinaAdamW(groups, lr=1e-4)
    train(optimizer, dict([first, second]), 2)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_a_rate_that_became_wrong_stops_the_step_before_anything_moves(value):
    params = make_params()
    optimizer = HinaAdamW(params.items())
    train(optimizer, params, 1)
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer.param_groups[0]["lr"] = value
    set_grads(params, 1)
    with pytest.raises(ValueError, match="param group 0: lr = "):
        optimizer.step()
    assert all(torch.equal(before[name], params[name]) for name in params)


def test_betas_of_a_group_act_on_it_alone():
    """As in torch, bit for bit."""
    mine, theirs = make_params(), make_params()
    halves = lambda params: (list(params.values())[:6], list(params.values())[6:])
    groups = lambda params: [{"params": halves(params)[0]}, {"params": halves(params)[1], "betas": (0.5, 0.9)}]
    optimizer = HinaAdamW(groups(mine), lr=1e-2, weight_decay=0.0, **OFF)
    reference = torch.optim.AdamW(groups(theirs), lr=1e-2, weight_decay=0.0)
    for step in range(20):
        for each in (optimizer, reference):
            if step == 10:
                each.param_groups[1]["betas"] = (0.7, 0.95)
            if step == 15:
                each.param_groups[0]["betas"] = (0.8, 0.999)
        for params, each in ((mine, optimizer), (theirs, reference)):
            set_grads(params, step)
            each.step()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_betas_were_never_said_stays_the_techniques_own():
    params = make_params()
    optimizer = HinaAdamW(params.items(), use_adopt_stability=True, use_muon=True)
    optimizer.param_groups[0]["betas"] = (0.8, 0.999)
    train(optimizer, params, 1)
    moments = {chain[0].name: chain[0] for chain in (bucket.chain for bucket in optimizer.plan().buckets)}
    assert (moments["adopt"].beta1, moments["adopt"].beta2, moments["muon"].beta) == (0.8, 0.9999, 0.8)


def test_a_scheduler_of_beta1_rebuilds_no_plan_and_survives_a_checkpoint():
    params = make_params()
    optimizer = HinaAdamW(params.items(), state="fp32")
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=12)
    train(optimizer, params, 1)
    plan = optimizer.plan()
    for step in range(1, 5):
        scheduler.step()
        train(optimizer, params, 1, start=step)
    assert optimizer.plan() is plan
    saved, resumed = through_file(optimizer.state_dict()), copy_of(params)
    second = HinaAdamW(resumed.items(), state="fp32")
    other = lr_scheduler.OneCycleLR(second, max_lr=1e-2, total_steps=12)
    second.load_state_dict(saved)
    other.load_state_dict(scheduler.state_dict())
    for step in range(5, 9):
        for each, own, rates in ((optimizer, params, scheduler), (second, resumed, other)):
            rates.step()
            train(each, own, 1, start=step)
    assert all(torch.equal(params[name], resumed[name]) for name in params)


# Arguments as torch takes them


def test_by_position_and_as_a_tensor():
    results = []
    for make in (
        lambda params: torch.optim.AdamW(params, 1e-2, (0.9, 0.99), 1e-6, 0.1),
        lambda params: HinaAdamW(params, 1e-2, (0.9, 0.99), 1e-6, 0.1, **OFF),
        lambda params: AdaptiveHinaAdamW(params, torch.tensor(1e-2), (0.9, 0.99), 1e-6, 0.1, **OFF),
    ):
        params = make_params()
        train(make(params.values()), params, 5)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-7)


def test_a_tensor_as_rate_is_the_one_that_is_read():
    params, rate = make_params(), torch.tensor(1e-2)
    optimizer = HinaAdamW(params.items(), rate)
    assert optimizer.param_groups[0]["lr"] is rate
    rate.fill_(0.0)
    before = params["head.weight"].detach().clone()
    train(optimizer, params, 2)
    assert torch.equal(params["head.weight"], before)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    scheduler.base_lrs = [1e-3]
    optimizer.step()
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(1e-3)


# Resuming with another learning rate

SCHEDULES = {
    "warm-up and cosine": lambda o: lr_scheduler.LambdaLR(
        o, lambda step: min(1.0, step / 4) * (1 + math.cos(step / 8)) / 2 + 0.1
    ),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=30, eta_min=1e-6),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.StepLR(o, 4, 0.5)], milestones=[3]
    ),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, [g["lr"] for g in o.param_groups], total_steps=40),
    "cyclic": lambda o: lr_scheduler.CyclicLR(
        o, [g["lr"] for g in o.param_groups], [2 * g["lr"] for g in o.param_groups], step_size_up=3
    ),
}


def groups_of(params, rates):
    items = list(params.items())
    return [{"params": items[:1], "lr": rates[0]}, {"params": items[1:], "lr": rates[1]}]


def run(optimizer, scheduler, params, steps, start=0):
    rates = []
    for step in range(start, start + steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        train(optimizer, params, 1, start=step)
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("at", [1, 5])
def test_the_new_rate_holds_in_every_later_step(schedule, at):
    """As if the run had been started with it: the trainer restores optimizer, then scheduler, then the hook acts."""
    params = make_params(shapes=PAIR)
    optimizer = HinaAdamW(groups_of(params, (1e-3, 2e-3)))
    scheduler = schedule(optimizer)
    run(optimizer, scheduler, params, at)
    saved = through_file(optimizer.state_dict()), copy.deepcopy(scheduler.state_dict())
    expected_params = copy_of(params)
    expected = HinaAdamW(groups_of(expected_params, (1e-4, 4e-4)))
    wanted = run(expected, schedule(expected), expected_params, 20)[at:]
    resumed = copy_of(params)
    second = HinaAdamW(groups_of(resumed, (1e-4, 4e-4)), override_hyperparameters=True)
    other = schedule(second)
    second.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    hold_rates(second, _Wrapped(other))
    rates = run(second, other, resumed, 20 - at, start=at)
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(wanted), rtol=1e-5, atol=1e-12)


class _Wrapped:
    """As accelerate wraps one."""

    def __init__(self, scheduler):
        self.scheduler = scheduler


def test_without_the_override_the_old_schedule_goes_on_and_both_rates_are_said(caplog):
    params = make_params(shapes=PAIR)
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    scheduler = SCHEDULES["exponential"](optimizer)
    run(optimizer, scheduler, params, 3)
    saved = through_file(optimizer.state_dict())
    second = HinaAdamW(copy_of(params).items(), lr=1e-4)
    other = SCHEDULES["exponential"](second)
    with caplog.at_level(logging.WARNING):
        second.load_state_dict(saved)
    other.load_state_dict(scheduler.state_dict())
    hold_rates(second, other)
    assert second.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.9**3)
    assert [record.message for record in caplog.records] == [
        "resume: learning rate 0.0001 was asked for; the checkpoint's schedule (0.001) goes on; "
        "add override_hyperparameters=True for 0.0001"
    ]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        HinaAdamW(copy_of(params).items(), lr=1e-4, override_hyperparameters=True).load_state_dict(saved)
    assert "learning rate 0.0001 instead of the checkpoint's 0.001; a scheduler that is restored" in caplog.text


def test_the_same_settings_are_resumed_without_a_word(caplog):
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3, use_tam=True)
    scheduler = SCHEDULES["one cycle"](optimizer)
    run(optimizer, scheduler, params, 3)
    second = HinaAdamW(copy_of(params).items(), lr=1e-3, use_tam=True)
    SCHEDULES["one cycle"](second)
    with caplog.at_level(logging.WARNING):
        second.load_state_dict(through_file(optimizer.state_dict()))
    assert [record.message for record in caplog.records] == []


# Resuming what another class or program saved


def test_another_class_is_said(caplog):
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    train(optimizer, params, 2)
    saved = through_file(optimizer.state_dict())
    for override, words in (
        (False, "the checkpoint was saved by HinaAdamW; its techniques and settings go on under the name COptim"),
        (True, "the checkpoint was saved by HinaAdamW; COptim goes on with the averages that both keep"),
    ):
        caplog.clear()
        second = COptim(copy_of(params).items(), lr=1e-3, override_hyperparameters=override)
        with caplog.at_level(logging.WARNING):
            second.load_state_dict(saved)
        assert words in caplog.text
        train(second, dict(zip(params, second.params(), strict=True)), 1)


def foreign():
    param = torch.nn.Parameter(torch.ones(64, 64))
    yield torch.optim.AdamW([param]), "torch's AdamW or of one like it", "--optimizer_type AdamW "
    bitsandbytes = pytest.importorskip("bitsandbytes")
    yield bitsandbytes.optim.AdamW8bit([param]), "bitsandbytes, as AdamW8bit keeps it", "--optimizer_type AdamW8bit"
    yield torch.optim.SGD([param], momentum=0.9), "another optimizer (momentum_buffer)", "the one it was"


def test_another_optimizers_state_is_refused_with_what_to_type():
    for optimizer, whose, line in foreign():
        param = optimizer.param_groups[0]["params"][0]
        param.grad = torch.ones_like(param)
        optimizer.step()
        with pytest.raises(ValueError, match="saved by another optimizer") as refusal:
            HinaAdamW([param]).load_state_dict(optimizer.state_dict())
        text = str(refusal.value)
        assert whose in text
        assert line.strip() in text
        assert '--network_weights "....safetensors"' in text
        assert "instead of --resume" in text


# Techniques that act on nothing


@pytest.mark.parametrize(
    ("options", "shapes", "words"),
    [
        (
            {"use_alora": True},
            {"head.weight": (7, 5)},
            "use_alora=True acts on no parameter: it needs a factor that starts",
        ),
        (
            {"use_kronecker_rms": True},
            PAIR,
            "use_kronecker_rms=True acts on no parameter: it needs the factors of a LoKr",
        ),
        (
            {"use_allora_rows": True},
            {"head.weight": (7, 5)},
            "use_allora_rows=True acts on no parameter: it needs a pair",
        ),
        ({"use_lora_rite": True}, {"head.weight": (7, 5)}, "use_lora_rite=True acts on no parameter: it needs a pair"),
        ({"use_muon": True}, {"head.bias": (7,)}, "use_muon=True acts on no parameter: it needs a matrix"),
        ({"use_agr": True}, {"gain": (1,)}, "use_agr=True acts on no parameter: it needs a parameter of more than one"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_technique_that_was_asked_for_and_fits_nothing_is_said_once(options, shapes, words, caplog):
    params = make_params(shapes=shapes)
    optimizer = HinaAdamW(params.items(), **options)
    with caplog.at_level(logging.WARNING):
        train(optimizer, params, 3)
    assert len([record for record in caplog.records if words in record.message]) == 1
    assert next(iter(shapes)) in caplog.text


def test_without_names_it_says_to_pass_names(caplog):
    params = make_params()
    with caplog.at_level(logging.WARNING):
        train(HinaAdamW(list(params.values()), use_alora=True), params, 2)
    assert "14 of 14 parameters have no name: pass names (network.named_parameters()" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # which looks for pairs without names, and says so only then
        optimizer = AdaptiveHinaAdamW(list(params.values()), use_alora=True)
        train(optimizer, params, 4)
        assert "acts on no parameter" not in caplog.text
        train(optimizer, params, 1, start=4)
    assert caplog.text.count("use_alora=True acts on no parameter") == 1


def test_what_is_only_on_by_default_is_no_warning(caplog):
    params = make_params(shapes={"head.bias": (7,)})
    with caplog.at_level(logging.WARNING):
        train(HinaAdamW(params.items()), params, 2)
        train(AutomagicCameAMP(params.items(), profile="balanced"), params, 2)
    assert not caplog.records


# Layouts, whole weights, aliases


def test_channels_last_convolutions_step_as_others():
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        params = make_params(shapes={f"conv{i}.weight": (6, 4, 3, 3) for i in range(3)})
        for param in params.values():
            param.data = param.data.to(memory_format=layout)
        optimizer = AdaptiveHinaAdamW(
            params.items(), lr=1e-2, state="fp32", use_spd=True, relationship_discovery_interval=3
        )
        for step in range(5):
            set_grads(params, step)
            for param in params.values():
                param.grad = param.grad.to(memory_format=layout)
            optimizer.step()
        assert all(param.is_contiguous(memory_format=layout) for param in params.values())
        results.append(torch.stack([param.detach() for param in params.values()]))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("name", "adams"),
    [
        ("text_model.embeddings.token_embedding.weight", True),
        ("lora_te1_text_model_embeddings_position_embedding.weight", True),
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("lm_head.weight", True),
        ("emb.weight", True),
        ("unet.time_embedding.linear_1.weight", False),
        ("x_embedder.weight", False),
        ("lora_unet_time_embedding_linear_1.lora_up.weight", False),
        ("head.weight", False),
        ("weight", False),
    ],
)
def test_embeddings_and_heads_are_adams(name, adams):
    (chain,) = chains_of(HinaAdamW([(name, torch.nn.Parameter(torch.ones(40, 8)))], use_muon=True))
    assert chain[0].name == ("adam" if adams else "muon")


SMALL = {"use_muon": True, "muon.largest": 512}


def test_muon_leaves_embeddings_and_what_is_too_large_for_it(caplog):
    shapes = {"small.weight": (512, 600), "large.weight": (513, 600), "model.embed_tokens.weight": (513, 600)}
    params = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    names = lambda **options: [chain[0].name for chain in chains_of(HinaAdamW(params.items(), **options))]
    assert names() == ["adam", "adam", "adam"]
    assert names(use_muon=True) == ["muon", "muon", "adam"]
    assert names(**SMALL) == ["muon", "adam", "adam"]
    for param in params.values():
        param.grad = torch.ones_like(param)
    with caplog.at_level(logging.INFO):
        HinaAdamW(params.items(), **SMALL).step()
    assert (
        "Muon leaves to the other moment: 1 embeddings and heads (model.embed_tokens.weight, ...); 1 matrices"
        in caplog.text
    )
    assert "by muon.largest" in caplog.text


def test_edge_threshold_of_coptim_is_its_own():
    """Spikes are damped at 2.5 times the usual norm, whatever the context's threshold is."""
    params = make_params()
    for cls, threshold in ((COptim, 0.6), (AutomagicCameAMP, 0.3)):
        optimizer = cls(params.items(), edge_suppression=True, edge_threshold=0.3)
        techniques = optimizer.param_groups[0]["techniques"]
        assert techniques["edge_suppression"]["threshold"] == threshold
        assert techniques.get("contextual_cautious", {}).get("edge_threshold", 0.3) == 0.3
    dotted = COptim(params.items(), edge_suppression=True, **{"edge_suppression.threshold": 0.2})
    assert dotted.param_groups[0]["techniques"]["edge_suppression"]["threshold"] == 0.2


def test_lora_plus_leaves_weight_decay_to_the_group():
    """And its documentation says so; the authors' code decays B faster by the ratio."""
    params = make_params(shapes=PAIR)
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer = HinaAdamW(params.items(), lr=1e-2, weight_decay=0.5, use_alora=True, use_muon=False)
    for param in params.values():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(torch.allclose(params[name], before[name] * (1 - 5e-3)) for name in params)
    assert "weight decay keeps the group's learning rate" in " ".join(build("lora_plus").__doc__.split())


def test_base_class_without_betas_refuses_them():
    params = make_params()
    with pytest.raises(ValueError, match="was made without betas; give each technique its own"):
        HinaOptimizer([{"params": params.items(), "betas": (0.9, 0.99)}], [build("adam")], lr=1e-3, weight_decay=0.0)
