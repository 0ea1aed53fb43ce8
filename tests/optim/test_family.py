"""Every optimizer of the family: what it equals when bare, that each flag acts, that it resumes, and what it costs."""

import inspect
import io
import json
import re
from functools import lru_cache

import pytest
import torch

import hina_kohya
from hina_kohya.optim import arguments, presets
from hina_kohya.optim.automagic_cameamp import PROFILES
from hina_kohya.optim.kinds import Switch
from tests.support.chains import FLAGS as SHARED
from tests.support.chains import STATES, chains_of
from tests.support.classes import CLASSES, GUARDED
from tests.support.combinations import in_pairs, same
from tests.support.counting import Counter, small_matrices
from tests.support.promises import DTYPES
from tests.support.stepping import SHAPES, make_params, set_grads, train

BARE = {"use_lora_muon": False, "use_cautious": False, "use_lr_mask": False, "use_dynamic_adaptation": False,
        "use_context": False, "bias_correct_confidence": False, "weight_decay": 0.0}  # fmt: skip
VARIANTS = {
    "adaptive": ("AdaptiveHinaAdamW", {"use_dynamic_adaptation": True, "use_lr_mask": True}),
    "camp": ("AutomagicCameAMP", {}),
    "camp mask": ("AutomagicCameAMP", {"use_lr_mask": True}),
    "camp guarded": ("AutomagicCameAMP", GUARDED),
    "camp adam grams": ("AutomagicCameAMP", {"came": False, "use_grams": True}),
    "coptim": ("COptim", {}),
    "coptim came": ("COptim", {"came": True, **GUARDED}),
    "coptim dual": ("COptim", {"enable_dual_momentum": True}),
    "coptim muon": ("COptim", {"use_muon": True}),
}
variants = pytest.mark.parametrize(("cls", "options"), VARIANTS.values(), ids=VARIANTS.keys())


def make(cls, params, **options):
    return getattr(hina_kohya, cls)(params.items() if isinstance(params, dict) else params, **options)


def rows(cls):
    return arguments.of(getattr(hina_kohya, cls))


def known(cls, options):
    return {name: value for name, value in options.items() if name in rows(cls)}


def flat(params):
    return torch.cat([param.detach().flatten() for param in params.values()])


def trained(cls, steps=8, shapes=None, spike=True, **options):
    """Parameters after some steps, of which the sixth has a gradient 50 times as large."""
    params = make_params(shapes=shapes)
    optimizer = make(cls, params, lr=1e-2, **options)
    for step in range(steps):
        set_grads(params, step, scale=50.0 if spike and step == 5 else 1.0)
        optimizer.step()
    return flat(params)


# What each class is with its extras off


@pytest.mark.parametrize("cls", ["HinaAdamW", "AdaptiveHinaAdamW"])
def test_bare_it_is_torch_adamw_by_the_bit(cls):
    mine, theirs = make_params(), make_params()
    options = {**known(cls, BARE), "weight_decay": 0.1}
    optimizer = make(cls, mine, lr=1e-2, state="fp32", decay_roles="all", **options)
    reference = torch.optim.AdamW(theirs.values(), lr=1e-2, weight_decay=0.1)
    for step in range(20):
        for params, each in ((mine, optimizer), (theirs, reference)):
            set_grads(params, step)
            each.step()
    assert torch.equal(flat(mine), flat(theirs))


@pytest.mark.parametrize("cls", ["AutomagicCameAMP", "COptim"])
def test_bare_with_came_it_is_came_pytorch(cls):
    came = pytest.importorskip("came_pytorch")
    shapes = {"head.weight": (7, 5), "body.weight": (12, 16), "bias": (9,)}
    mine, theirs = make_params(torch.float64, shapes=shapes), make_params(torch.float64, shapes=shapes)
    optimizer = make(cls, mine, lr=1e-3, came=True, **known(cls, BARE))
    reference = came.CAME(list(theirs.values()), lr=1e-3, weight_decay=0.0)
    for step in range(30):
        for params, each in ((mine, optimizer), (theirs, reference)):
            set_grads(params, step)
            each.step()
    torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-9, atol=1e-12)


def test_without_context_coptim_is_cautious_adamw():
    timm = pytest.importorskip("timm.optim")
    mine, theirs = make_params(torch.float64), make_params(torch.float64)
    optimizer = make("COptim", mine, lr=1e-2, use_context=False, weight_decay=0.1, decay_roles="all")
    reference = timm.adamw.AdamWLegacy(theirs.values(), lr=1e-2, weight_decay=0.1, caution=True)
    for step in range(30):
        for params, each in ((mine, optimizer), (theirs, reference)):
            set_grads(params, step)
            each.step()
    torch.testing.assert_close(flat(mine), flat(theirs), rtol=1e-10, atol=1e-12)


# Every flag

PAIRS = {name: shape for name, shape in SHAPES.items() if name != "gain"}
MASK = {"use_lr_mask": True, "min_lr": 5e-3, "max_lr": 2e-2}
EDGE = {"edge_suppression": True, "edge_suppression.warmup": 1}
SPACE, TIME = {"spatial_awareness": True}, {"background_regularization": True, "temporal_frequency.window": 4}
CAME_FLAGS = [
    {"came": False},
    {"bias_correct_confidence": False},
    {"clip_threshold": 0.2},
    {"beta1_decay": 0.5},
    {"betas": (0.5, 0.99, 0.999)},
    {"eps": (1e-3, 1e-16, 1e-8)},
    {"eps": (1e-30, 1e-3, 1e-8)},
    {"came": False, "eps": (1e-30, 1e-16, 1e-3)},
    {"use_alora": True, "full_finetune": True},
    {"use_allora_rows": True, "eta": 0.5},
    {**EDGE},
    {**EDGE, "edge_threshold": 0.1},
    {**EDGE, "edge_penalty": 0.9},
    SPACE,
    {**SPACE, "frequency_penalty": 0.9},
    {**SPACE, "frequency_penalty": 0.9, "detail_preservation": 0.1},
    TIME,
    {**TIME, "frequency_penalty": 0.9},
    {**TIME, "frequency_penalty": 0.9, "detail_preservation": 0.1},
    {"lora_rank_penalty": True},
    {"lora_rank_penalty": True, "rank_penalty_strength": 0.5},
    {"lora_rank_penalty": True, "rank_penalty_strength": 0.5, "low_rank_emphasis": 3.0},
    {"enable_dual_momentum": True},
    {"enable_dual_momentum": True, "long_term_beta": 0.5},
    {"enable_dual_momentum": True, "alpha_mix_ratio": 3.0},
    {"use_lr_mask": True, "profile": "memory_optimized"},
    {"profile": "balanced"},
    {"profile": "quality_optimized"},
]
MASK_FLAGS = [
    {"use_lr_mask": True},
    {"use_lr_mask": True, "min_lr": 9e-3},
    {"use_lr_mask": True, "max_lr": 1.1e-2},
    {**MASK, "lr_bump": 1e-4},
    {"use_lr_mask": True, "warmup_steps": 2},
]
FAMILY_FLAGS = [
    *(("AutomagicCameAMP", options) for options in CAME_FLAGS),
    *(("AutomagicCameAMP", options) for options in MASK_FLAGS),
    *(("AdaptiveHinaAdamW", options) for options in MASK_FLAGS),
    ("AdaptiveHinaAdamW", {"adaptation_strength": 1.0, "use_dynamic_adaptation": False}),
    ("AdaptiveHinaAdamW", {"use_dynamic_adaptation": True, "adaptation_strength": 2.0}),
    ("AdaptiveHinaAdamW", {"adaptation_strength": 1.0, "importance_decay": 0.5}),
    ("COptim", {"use_context": False}),
    ("COptim", {"momentum_scales": (1, 3)}),
    ("COptim", {"context_window": 2}),
    ("COptim", {"context_window": 2, "edge_threshold": 0.01}),
    ("COptim", {"adaptation_rate": 0.7}),
    ("COptim", {"enable_dual_momentum": True}),
    *((cls, {"use_muon": True, "use_normuon": False}) for cls in CLASSES),
    *((cls, {"use_muon": True}) for cls in CLASSES),
    *((cls, {"use_lora_muon": not rows(cls)["use_lora_muon"].start}) for cls in CLASSES),
    *((cls, {"rank_free_lr": not rows(cls)["rank_free_lr"].start}) for cls in CLASSES),
    *((cls, {"rank_free_lr": True, "lora_scale": 0.5}) for cls in CLASSES),
    *((cls, {"use_auto_lr": not rows(cls)["use_auto_lr"].start}) for cls in CLASSES),
    ("HinaAuto", {"d0": 1e-5}),
]


@lru_cache(maxsize=64)
def _without(cls, items):
    return trained(cls, **dict(items))


@pytest.mark.parametrize(("cls", "options"), FAMILY_FLAGS, ids=str)
def test_every_flag_changes_the_update(cls, options, caplog):
    """And not only because another flag of the same line does; nor is it said to be without effect."""
    last = list(options)[-1]
    base = tuple((key, value) for key, value in options.items() if key != last)
    assert not torch.equal(_without(cls, base), trained(cls, **options))
    assert not re.search(rf"without effect.*\b{re.escape(last)}\b", caplog.text)


KINDS = {
    "pair": {"lora_unet_a.lora_down.weight": (4, 8), "lora_unet_a.lora_up.weight": (8, 4)},
    "lokr": {"lycoris_a.lokr_w1": (2, 2), "lycoris_a.lokr_w2_a": (8, 4), "lycoris_a.lokr_w2_b": (4, 8)},
    "dense": {"head.weight": (7, 5)},
    "vector": {"head.bias": (7,)},
}


@pytest.mark.parametrize("lora_muon", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cls", ["HinaAdamW", "AutomagicCameAMP"])
def test_a_switch_that_acts_is_not_said_to_be_idle(cls, kind, lora_muon, caplog):
    switches = [name for name, row in rows(cls).items() if isinstance(row, Switch) and not row.instead_of]
    off = dict.fromkeys(switches, False) | {"use_lora_muon": lora_muon}
    plain = trained(cls, shapes=KINDS[kind], **off)
    for name in switches:
        caplog.clear()
        acts = not torch.equal(plain, trained(cls, shapes=KINDS[kind], **{**off, name: True}))
        assert not (acts and f"{name}=True acts on no parameter" in caplog.text), name


# What else says how a pair is stepped; each other flag leaves LoRA-Muon where it is.
INSTEAD_OF_LORA_MUON = {
    "use_muon", "use_lora_rite", "use_adopt_stability", "tam_paper_form", "use_grams", "use_alora", "use_allora_rows"
}  # fmt: skip


@pytest.mark.parametrize("cls", ["HinaAdamW", "AdaptiveHinaAdamW"])
def test_which_flags_take_the_place_of_lora_muon(cls):
    switches = [name for name, row in rows(cls).items() if row.start is False]
    params = make_params(shapes={name: shape for name, shape in SHAPES.items() if name.startswith("lora_unet_a")})
    displaced = set()
    for name in switches:
        more = {"use_tam": True} if name == "tam_paper_form" else {}
        chains = chains_of(make(cls, params, **{name: True, **more}))
        if not any(technique.name == "lora_muon" for chain in chains for technique in chain):
            displaced.add(name)
    assert displaced == INSTEAD_OF_LORA_MUON


def test_no_flag_was_forgotten():
    """Each argument of each class is in a list of flags that are shown to act, or has no bearing on the update."""
    shown = {name for _, options in FAMILY_FLAGS for name in options} | {name for o in SHARED for name in o}
    silent = {"lr", "preset", "compile", "override_hyperparameters", "verbose"}
    discovery = {"relationship_discovery_interval", "compatibility_threshold"}  # tests/optim/test_adaptive.py
    discovery |= {"d_coef"}  # tests/techniques/test_auto_rate.py, where there is a way to go
    for cls in CLASSES:
        assert set(rows(cls)) <= shown | silent | discovery, cls


# Reliability


def through_file(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.slow
@in_pairs(("variant", "state", "dtype"), VARIANTS, same(STATES), DTYPES)
def test_k_and_k_is_2k(variant, state, dtype):
    cls, options = variant
    params = make_params(dtype)
    optimizer = make(cls, params, lr=1e-3, state=state, **options)
    train(optimizer, params, 3)
    saved = through_file(optimizer.state_dict())
    resumed = {name: torch.nn.Parameter(param.detach().clone()) for name, param in params.items()}
    train(optimizer, params, 5, start=3)
    second = make(cls, resumed, lr=1e-3, state=state, **options)
    second.load_state_dict(saved)
    train(second, resumed, 5, start=3)
    assert torch.equal(flat(params), flat(resumed))
    first_state, second_state = optimizer.state_dict(), second.state_dict()
    for index, entry in first_state["state"].items():
        for key, value in entry.items():
            other = second_state["state"][index][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


@pytest.mark.slow
@variants
def test_nan_in_one_matrix_does_not_reach_another(cls, options):
    """Neighbours of the bucket must not change by a bit; where the group's learning rate is shared out, stay finite."""
    shares = options.get("use_dynamic_adaptation", False)
    healthy, poisoned = make_params(), make_params()
    ours = [make(cls, params, lr=1e-3, **options) for params in (healthy, poisoned)]
    for step in range(6):
        for number, params in enumerate((healthy, poisoned)):
            set_grads(params, step)
            if number and step == 2:
                params["lora_unet_a.lora_up.weight"].grad[0, 0] = float("nan")
            ours[number].step()
    for name in healthy:
        if not name.startswith("lora_unet_a"):  # its own partner may see it
            assert poisoned[name].isfinite().all() if shares else torch.equal(healthy[name], poisoned[name]), name


@pytest.mark.slow
@variants
def test_zero_gradients_and_bf16_parameters_stay_finite(cls, options):
    for dtype in (torch.float32, torch.bfloat16):
        params = make_params(dtype)
        optimizer = make(cls, params, lr=1e-3, **options)
        for step in range(5):
            set_grads(params, step, scale=0.0 if step in (0, 3) else 1.0)
            optimizer.step()
        assert flat(params).isfinite().all()


@pytest.mark.slow
@variants
def test_no_synchronisation_and_no_operation_more_for_more_matrices(cls, options):
    counts = []
    for per_shape in (10, 20):
        params = small_matrices(per_shape)
        optimizer = make(cls, params, lr=1e-3, **options)
        for step in range(7):  # the looks of relationship discovery, which do synchronise, are at the first four
            set_grads(params, step)
            with Counter() as counter:
                optimizer.step()
        assert counter.synchronisations == []
        counts.append(counter.operations)
    assert counts[0] == counts[1]


# Memory


def sdxl_like(rank=16):
    shapes = {}
    for number, (n, m) in enumerate([(640, 640), (1280, 1280), (2048, 640), (2048, 1280), (1280, 10240), (320, 320)]):
        shapes[f"lora_unet_m{number}.lora_down.weight"] = (rank, n)
        shapes[f"lora_unet_m{number}.lora_up.weight"] = (m, rank)
    return shapes


@pytest.mark.parametrize(
    ("cls", "options", "limit"),
    [
        ("HinaAdamW", {}, 2.4),
        ("HinaAuto", {}, 5.1),  # a sum in bf16, and, of what does not start at zero here, a copy of where it did
        ("AdaptiveHinaAdamW", {}, 2.4),
        ("AdaptiveHinaAdamW", {"use_dynamic_adaptation": True}, 2.4),
        ("AutomagicCameAMP8bit", {}, 2.4),
        ("AutomagicCameAMP8bit", {"use_lr_mask": True}, 2.4),
        ("AutomagicCameAMP8bit", {"profile": "memory_optimized", "use_lr_mask": True}, 1.5),
        ("COptim8bit", {"use_muon": True}, 1.4),
        ("COptim8bit", {}, 2.4),
    ],
    ids=str,
)
def test_bytes_a_parameter(cls, options, limit):
    params = make_params(shapes=sdxl_like())
    optimizer = make(cls, params, lr=1e-3, **options)
    train(optimizer, params, 1)
    assert optimizer.get_memory_efficiency_report()["bytes_per_parameter"] <= limit


def test_the_8bit_classes_keep_every_slot_in_8_bits():
    for cls in ("AutomagicCameAMP8bit", "COptim8bit"):
        params = make_params(shapes=sdxl_like())
        optimizer = make(cls, params, lr=1e-3, use_lr_mask=True, came=True)
        train(optimizer, params, 1)
        for entry in optimizer.state.values():
            for key, value in entry.items():
                if isinstance(value, torch.Tensor) and value.numel() > 64 and not key.endswith(".scale"):
                    assert value.element_size() == 1, key
        with pytest.raises(ValueError, match=rf"use {cls.removesuffix('8bit')} for 'fp32'"):
            make(cls, params, state="fp32")


# Arguments


@pytest.mark.parametrize("cls", CLASSES)
def test_what_it_says_of_itself_before_the_first_step(cls):
    optimizer = make(cls, make_params())
    json.dumps(optimizer.get_optimization_info())
    json.dumps(optimizer.get_memory_efficiency_report())
    assert optimizer.get_optimization_info()["optimizer_type"] == cls


def test_spikes_are_counted_and_reported():
    params = make_params()
    optimizer = make("AutomagicCameAMP", params, lr=1e-3, **EDGE)
    for size in (1.0, 1.0, 1.0, 100.0):
        for param in params.values():
            param.grad = torch.full_like(param, size)
        optimizer.step()
    assert optimizer.get_optimization_info()["training_stats"]["gradient_spikes"] == len(params)


def all_presets():
    return [(cls, name) for cls in CLASSES for name in presets.names(cls)]


@pytest.mark.parametrize(("cls", "name"), all_presets())
def test_presets_train(cls, name):
    params = make_params()
    optimizer = make(cls, params, preset=name)
    train(optimizer, params, 3)
    assert flat(params).isfinite().all()
    assert optimizer.settings.preset == name


def test_presets_of_the_documents():
    assert presets.names("AdaptiveHinaAdamW") == ["adaptive_general", "adaptive_large"]
    assert presets.names("AutomagicCameAMP8bit") == [f"camp_{name}" for name in sorted(
        PROFILES, key=lambda name: f"camp_{name}")]  # fmt: skip
    general = presets.load("adaptive_general", "AdaptiveHinaAdamW")
    assert (general["adaptation_strength"], general["relationship_discovery_interval"]) == (1.2, 150)
    for profile in PROFILES:
        assert presets.load(f"camp_{profile}", "AutomagicCameAMP")["profile"] == profile


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        ("AutomagicCameAMP", {"profile": "balanc"}, "profile = 'balanc' does not exist; did you mean balanced"),
        ("AutomagicCameAMP", {"betas": (0.9, 0.99)}, r"betas = \(0.9, 0.99\) must be three numbers"),
        ("AutomagicCameAMP", {"eps": 1e-8}, "eps = 1e-08 must be three numbers"),
        ("AutomagicCameAMP", {"eps": (0.0, 1e-16, 1e-8)}, r"eps\[0\] = 0.0 is outside"),
        ("AutomagicCameAMP", {"lr": 1.0, "max_lr": 1e-3}, "must contain lr = 1"),
        ("AutomagicCameAMP", {"edge_threshold": 1.0}, r"edge_threshold = 1.0 is outside \[0, 1\)"),
        ("AutomagicCameAMP", {"alpha_mix_ratio": -1.0}, r"alpha_mix_ratio = -1.0 is outside"),
        ("COptim", {"momentum_scales": ()}, "scales"),
        ("COptim", {"momentum_scales": (5, 1)}, "scales"),
    ],
)
def test_bad_input_is_one_clear_error(cls, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(cls, make_params(), **{"use_lr_mask": True, **arguments})


def test_a_mask_in_learning_rates_is_relative_to_the_groups():
    optimizer = make(
        "AutomagicCameAMP", make_params(), lr=1e-4, use_lr_mask=True, min_lr=1e-5, max_lr=1e-3, lr_bump=1e-5
    )
    mask = optimizer.param_groups[0]["techniques"]["automagic_mask"]
    assert (mask["low"], mask["high"]) == (pytest.approx(0.1), pytest.approx(10))
    assert (1 + mask["bump"]) ** 99 == pytest.approx(100)  # (1e-3 - 1e-5) / 1e-5 steps cross the range


def test_conflicts_with_came():
    features = lambda **options: set(
        make("AutomagicCameAMP", make_params(), **options).get_optimization_info()["features"]
    )
    assert {"came", "adam"} & features() == {"came"}
    assert {"came", "adopt"} & features(use_adopt_stability=True) == {"adopt"}
    assert {"came", "adopt"} & features(use_adopt_stability=True, came=True) == {"came"}
    assert {"lora_plus", "allora_rows"} & features(use_alora=True, use_allora_rows=True, full_finetune=True) == set()


def test_every_class_is_documented():
    for cls in CLASSES:
        doc = inspect.getdoc(getattr(hina_kohya, cls))
        assert doc
        assert "Example::" in doc
