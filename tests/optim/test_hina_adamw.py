"""HinaAdamW as a user meets it: arguments, presets, conflicts, reports."""

import json
import logging
from pathlib import Path

import pytest
import toml
import torch

import hina_kohya
from hina_kohya import HinaAdamW
from hina_kohya.optim import presets
from tests.support.chains import chains_of
from tests.support.stepping import make_params, train


def make(**arguments):
    return HinaAdamW(make_params().items(), **arguments)


def features(**arguments):
    return set(make(**arguments).get_optimization_info()["features"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"use_catious": True}, TypeError, "unknown argument 'use_catious'; did you mean use_cautious"),
        ({"lr": -1.0}, ValueError, r"lr = -1.0 is outside \[0, inf\); the default is 0.001"),
        ({"betas": (0.9, 1.0)}, ValueError, r"adam.beta2 = 1.0 is outside \[0, 1\); the default is 0.999"),
        ({"betas": 0.9}, ValueError, r"betas = 0.9 must be two numbers, such as \(0.9, 0.999\)"),
        ({"weight_decay": (0.5,)}, ValueError, r"weight_decay = \(0.5,\) is not a number \(a trailing comma"),
        ({"eps": float("nan")}, ValueError, "eps = nan is not a number"),
        ({"use_tam": 1}, ValueError, "use_tam = 1 is not a yes or no; write use_tam=True or use_tam=False"),
        ({"state": "16bit"}, ValueError, "state = '16bit' is no way to store state; did you mean 8bit"),
        ({"cautious.flor": 0.1}, ValueError, "technique 'cautious' has no option 'flor'; did you mean floor"),
        ({"cautios.floor": 0.1}, ValueError, "there is no technique 'cautios'; did you mean cautious"),
        ({"tam.beta": 0.1}, ValueError, "tam.beta was given, but tam is off; add use_tam=True"),
        ({"cautious.floor": 0.0}, ValueError, r"cautious.floor = 0.0 is outside \(0, 1\]"),
        ({"preset": "lorkr"}, ValueError, "there is no preset 'lorkr'; did you mean lokr"),
        ({"decay_roles": ["dora"]}, ValueError, "there is no role 'dora'; did you mean dora_scale"),
        (
            {"dynamic_weight_decay": True, "wd_transition_steps": 0.5},
            ValueError,
            "add dynamic_weight_decay.total_steps",
        ),
    ],
)
def test_bad_input_is_one_clear_error(arguments, error, message):
    with pytest.raises(error, match=message):
        make(**arguments)


def test_sd_scripts_call_form():
    """`optimizer_class(trainable_params, lr=args.learning_rate, **optimizer_kwargs)`, lists where a tuple is meant."""
    params = make_params()
    optimizer = HinaAdamW([{"params": params.values(), "lr": 5e-4}], lr=1e-3, betas=[0.9, 0.99], weight_decay=0)
    train(optimizer, params, 1)
    assert optimizer.param_groups[0]["lr"] == 5e-4
    assert optimizer.settings.betas[1] == 0.99


@pytest.mark.parametrize("name", ["HinaAdamW", "HinaAdamWOptimizer", "HinaAdamWOptimizer8bit", "CustomAdamW"])
def test_names_of_the_documents_work(name):
    """By dotted path in an unmodified sd-scripts, and in the entry-point group for whoever resolves short names."""
    assert getattr(hina_kohya, name) is HinaAdamW
    assert name in dir(hina_kohya)
    declared = toml.load(Path(__file__).parents[2] / "pyproject.toml")["project"]["entry-points"]
    assert declared["sd_scripts.optimizers"][name] == f"hina_kohya:{name}"
    with pytest.raises(AttributeError, match=f"no attribute '{name}x'; it offers HinaAdamW"):
        getattr(hina_kohya, f"{name}x")


def test_old_arguments_are_accepted_and_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        make(amsgrad=False, min_8bit_size=4096, percentile_clipping=100, block_wise=True, is_paged=False)
    assert [record.message for record in caplog.records] == [
        "accepted for old configs, without effect: amsgrad, min_8bit_size, percentile_clipping, block_wise, is_paged"
    ]
    assert make(optim_bits=32).settings.state == "fp32"
    assert make(optim_bits=8).settings.state == "8bit"


def test_an_option_of_a_technique_that_is_off_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        make(tam_beta=0.5, use_alora=False, alora_ratio=4.0)
    assert "without effect, since the technique is off: tam_beta, alora_ratio" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "on", "off", "conflict"),
    [
        ({"use_grams": True}, {"grams"}, {"cautious"}, []),
        ({"use_grams": True, "use_cautious": True}, {"cautious"}, {"grams"}, ["grams is off: cautious excludes it"]),
        ({"use_spd": True}, {"spd"}, set(), []),
        ({"use_adopt_stability": True}, {"adopt"}, {"adam"}, []),
        (
            {"use_spd": True, "weight_decay": 0.1, "dynamic_weight_decay": True},
            {"spd"},
            {"dynamic_weight_decay"},
            ["weight_decay is off: spd excludes it", "dynamic_weight_decay is off: spd excludes it"],
        ),
    ],
)
def test_conflicts_are_decided_and_reported(arguments, on, off, conflict, caplog):
    with caplog.at_level(logging.WARNING):
        optimizer = make(**arguments)
    info = optimizer.get_optimization_info()
    assert on <= info["features"].keys()
    assert off.isdisjoint(info["features"])
    assert info["conflicts_resolved"] == conflict
    assert len(caplog.records) == bool(conflict)


def test_spd_leaves_what_does_not_decay_alone():
    optimizer = make(use_spd=True)
    by_role = {
        m.role.name: {t.name for t in chain} for m, chain in zip(optimizer.members, chains_of(optimizer), strict=True)
    }
    assert "spd" in by_role["lora_down"]
    assert "spd" not in by_role["dora_scale"]


def test_roles_decide_what_decays():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-2, weight_decay=1.0, use_cautious=False)
    before = {name: param.detach().clone() for name, param in params.items()}
    for param in params.values():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    still = {name for name in params if torch.equal(params[name], before[name])}
    assert still == {"lora_unet_d.dora_scale", "lora_unet_d.scalar"}
    assert {m.role.name for m in make(decay_roles="all").members if not m.role.decays} == set()


@pytest.mark.parametrize("name", presets.names("HinaAdamW"))
def test_presets_load_and_train(name, caplog):
    params = make_params()
    with caplog.at_level(logging.WARNING):
        optimizer = HinaAdamW(params.items(), preset=name)
    train(optimizer, params, 3)
    arguments = toml.load(presets.folder() / f"{name}.toml")["arguments"]
    for argument, value in arguments.items():
        assert getattr(optimizer.settings, argument) == value
    assert not caplog.records


def test_the_table_of_presets_is_kept():
    expected = {
        "sd_lora": (8e-4, 16.0, 800, 0.75, 0.1),
        "llm": (5e-4, 20.0, 1200, 0.8, 0.1),
        "lokr": (1e-3, 18.0, 600, 0.8, 0.18),
        "lokr_sd": (8e-4, 16.0, 500, 0.75, 0.15),
        "lokr_llm": (5e-4, 20.0, 800, 0.85, 0.2),
        "lokr_experimental": (1.2e-3, 22.0, 400, 0.7, 0.12),
    }
    keys = ("lr", "alora_ratio", "wd_transition_steps", "wd_decay_factor", "wd_min_ratio")
    for name, values in expected.items():
        assert tuple(presets.load(name, "HinaAdamW")[key] for key in keys) == values
    assert set(presets.names("HinaAdamW")) == {*expected, "conservative", "aggressive"}


def test_arguments_win_over_a_preset_and_a_path_works(tmp_path, caplog):
    path = tmp_path / "mine.toml"
    path.write_text('optimizer = "HinaAdamW"\n[arguments]\nlr = 2e-3\nuse_tam = true\nalora_ratio = 2.0\n')
    with caplog.at_level(logging.INFO):
        optimizer = make(lr=1e-4, preset=str(path), alora_ratio=3.0)
    assert (optimizer.settings.lr, optimizer.settings.alora_ratio) == (1e-4, 3.0)
    assert "tam" in optimizer.get_optimization_info()["features"]
    assert "suggests lr = 0.002; using the given 0.0001" in caplog.text
    path.write_text('optimizer = "COptim"\n')
    with pytest.raises(ValueError, match="is for COptim, not for HinaAdamW"):
        make(preset=str(path))


def test_reports_before_and_after_steps_have_the_same_keys():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    reports = lambda: (
        optimizer.get_optimization_info(),
        optimizer.get_memory_efficiency_report(),
        optimizer.diagnose_lora_pairing(),
    )
    before = reports()
    train(optimizer, params, 2)
    after = reports()
    assert len(json.loads(json.dumps(after))) == 3
    assert [report.keys() for report in before] == [report.keys() for report in after]
    info, memory, pairing = after
    assert info["training_stats"]["global_step"] == 2
    assert info["version"] == hina_kohya.__version__
    assert info["lora_stats"] == {"lora_a_params": 3, "lora_b_params": 3, "lora_pairs": 3}
    assert info["lokr_stats"]["lokr_pairs"] == 1
    assert info["total_params"] == memory["total_parameters"] == sum(param.numel() for param in params.values())
    group = pairing["groups"]["group_0"]
    assert (group["pairs_count"], group["unpaired_a"], group["unpaired_b"]) == (4, [], [])
    details = {detail["name"]: detail for detail in group["parameter_details"]}
    assert details["lora_unet_a.lora_up.weight"]["paired_with"] == ["lora_unet_a.lora_down.weight"]
    assert len(details["lora_unet_k.lokr_w1"]["paired_with"]) == 2
    assert not details["head.weight"]["is_paired"]


def test_reports_of_nothing_do_not_raise():
    optimizer = HinaAdamW([torch.nn.Parameter(torch.zeros(0))])
    assert optimizer.get_optimization_info()["total_params"] == 0
    assert optimizer.get_memory_efficiency_report()["state_bytes"] == 0
    assert optimizer.effective_lr == [0.0]


def test_effective_lr_tells_what_role_rules_do():
    shapes = {"lora_unet_a.lora_down.weight": (4, 10), "lora_unet_a.lora_up.weight": (10, 4)}
    params = make_params(shapes=shapes)
    down, up = params.items()
    optimizer = HinaAdamW([{"params": [down, up]}], lr=1e-3, use_alora=True, alora_ratio=4.0)
    assert optimizer.effective_lr == pytest.approx([2.5e-3])
    optimizer.param_groups[0]["lr"] = 1e-4
    assert optimizer.effective_lr == pytest.approx([2.5e-4])


def test_the_first_step_logs_one_line(caplog):
    params = make_params()
    optimizer = HinaAdamW(params.items())
    with caplog.at_level(logging.INFO):
        train(optimizer, params, 2)
    assert len(caplog.records) == 1
    assert "lokr 1 modules, 1 Kronecker pairs, 1 pairs; lora 3 modules, 3 pairs" in caplog.text
    assert "HinaAdamW, 8bit" in caplog.text


def test_moments_have_their_papers_defaults_unless_asked():
    chain = {t.name: t for t in chains_of(make(use_adopt_stability=True))[0]}
    assert (chain["adopt"].beta2, chain["adopt"].eps) == (0.9999, 1e-6)
    chain = {t.name: t for t in chains_of(make(use_adopt_stability=True, betas=(0.8, 0.99)))[0]}
    assert (chain["adopt"].beta1, chain["adopt"].beta2) == (0.8, 0.99)
