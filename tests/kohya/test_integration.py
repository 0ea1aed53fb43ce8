"""This package in a whole training of sd-scripts: the double always, the real thing where there is a checkout."""

import re
import shutil
from unittest import mock

import pytest

from hina_kohya import patch
from hina_kohya.patch.targets import SD_SCRIPTS

LOKR = ("algo=lokr", "factor=4")
PROBE = "tests.support.group_probe.AdamW"
ORIGINAL = ("use_alora=True", "dynamic_weight_decay=True", "wd_transition_steps=1000")
RATES = ("--text_encoder_lr", "1e-4", "--unet_lr", "2e-4")


def lokr_pairs(report):
    modules, pairs = re.search(r"lokr (\d+) modules, (\d+) Kronecker pairs", report.log).groups()
    assert "0 regular, 0 unnamed" in report.log
    assert int(modules) == int(pairs) > 0


def endings(group):
    return {name.partition(".")[2] for name in group["param_names"]}


def assert_rates_are_logged(trainer, report, descriptions):
    """A curve for each group under its own description, and no other ones but those by number of sd-scripts 0.10."""
    assert len(report.groups) == len(descriptions)
    for description, group in zip(descriptions, report.groups, strict=True):
        assert report.scalars[f"lr/{description}"] == pytest.approx([group["lr"]] * len(report.losses))
    numbers = {f"lr/group{i}" for i in range(1, len(descriptions))} | {"lr/textencoder"}
    numbers = numbers if trainer.release == "0.10" else set()
    assert {tag for tag in report.scalars if tag.startswith("lr/")} == numbers | {f"lr/{each}" for each in descriptions}


# The ways in

WAYS = {
    "hina_kohya.lycoris": {"network": "hina_kohya.lycoris", "network_args": LOKR},
    "hina_kohya.network": {"network": "hina_kohya.network", "network_args": ("inner=lycoris.kohya", *LOKR)},
    "accelerate launch -m hina_kohya.launch": {"network_args": LOKR, "hooks": True, "launch": "accelerate"},
    "hina-kohya launch": {"network_args": LOKR, "launch": "hina-kohya"},
}
# Both go through hina_kohya.launch, each in processes of its own: one meets the double of each layout.
LAUNCHED = {"double": "hina-kohya launch", "double-0.10": "accelerate launch -m hina_kohya.launch"}


@pytest.mark.old_layout_too
@pytest.mark.usefixtures("forked_python")
@pytest.mark.parametrize("way", WAYS)
def test_short_name(trainer, way, request):
    layout = request.node.callspec.params["trainer"]
    if "launch" in WAYS[way] and LAUNCHED.get(layout, way) != way:
        pytest.skip("with the other layout")
    report = trainer.train(optimizer="HinaAdamW", steps=3, **WAYS[way])
    assert report.meta["ss_optimizer"].startswith("hina_kohya.optim.hina_adamw.HinaAdamW")
    assert report.meta["ss_network_module"] == WAYS[way].get("network", "lycoris.kohya")
    assert len(report.losses) == 3
    lokr_pairs(report)


@pytest.mark.slow
@pytest.mark.old_layout_too
@pytest.mark.usefixtures("forked_python")
def test_short_name_in_a_patched_checkout(trainer, tmp_path, monkeypatch):
    copy = shutil.copytree(trainer.home, tmp_path / "checkout", ignore=shutil.ignore_patterns(".git"))
    monkeypatch.setenv("SD_SCRIPTS_HOME", str(copy))
    monkeypatch.setattr(trainer.subject, "home", copy)
    patch.apply(patch.inspect(SD_SCRIPTS, copy))
    report = trainer.train(optimizer="HinaAdamW", network_args=LOKR, steps=3, here=False)
    assert report.meta["ss_network_module"] == "lycoris.kohya"
    lokr_pairs(report)
    patch.revert(patch.inspect(SD_SCRIPTS, copy))
    report = trainer.train(optimizer="HinaAdamW", network_args=LOKR, steps=3, rc=1)
    assert "has no attribute 'HinaAdamW'" in report.log


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lora", "lora_fa", "oft", "dylora"])
def test_short_name_with_any_network(trainer, network):
    args = (f"inner=networks.{network}",)
    report = trainer.train(network="hina_kohya.network", network_args=args, optimizer="hinaadamw", steps=3)
    assert "0 regular, 0 unnamed" in report.log
    assert report.meta["ss_network_module"] == "hina_kohya.network"


@pytest.mark.old_layout_too
def test_short_name_without_a_way_in(trainer):
    report = trainer.train(optimizer="HinaAdamW", network_args=LOKR, steps=1, rc=1)
    assert "has no attribute 'HinaAdamW'" in report.log


# A trainer that passes the hooks by

OTHER = """import torch


def make_optimizer(args, trainable_params):
    return "torch.optim.AdamW", "", torch.optim.AdamW(trainable_params, lr=args.learning_rate)
"""
PLANTED = {
    "another get_optimizer": (
        r"\w+\.get_optimizer\((args, \w+)\)",
        r"__import__('library.made_here').made_here.make_optimizer(\1)",
        r"AdamW was made by \S+made_here\.py: make_optimizer \(called by \S+train_network\.py: train\)",
    ),
    "groups of one's own": (
        r"\w+\.get_optimizer\(args, \w+\)",
        r"__import__('library.train_util').train_util.get_optimizer(args, list(network.parameters()))",
        r"train_network\.py: train\b.* took the parameters of \w+ otherwise than by prepare_optimizer_params",
    ),
    "another call": (
        r"\.prepare_optimizer_params\(text_encoder_lr, args\.unet_lr, args\.learning_rate\)|prepare\(rate,[^)]*\)",
        r".prepare_optimizer_params(1, 2, 3, 4)",
        r"asks \w+ for its param groups by prepare_optimizer_params\(1, 2, 3, 4\)",
    ),
}


@pytest.mark.slow
@pytest.mark.old_layout_too
@pytest.mark.parametrize("fault", PLANTED)
@pytest.mark.parametrize("optimizer", ["AdamW", "hina_kohya.HinaAdamW"])
def test_a_trainer_that_passes_the_hooks_by_stops(trainer, tmp_path, monkeypatch, fault, optimizer):
    copy = shutil.copytree(trainer.home, tmp_path / "checkout", ignore=shutil.ignore_patterns(".git"))
    monkeypatch.setenv("SD_SCRIPTS_HOME", str(copy))
    monkeypatch.setattr(trainer.subject, "home", copy)
    pattern, planted, said = PLANTED[fault]
    planted = planted if trainer.name == "sd-scripts" or fault != "another call" else f"network{planted}"
    script = copy / "train_network.py"
    text, count = re.subn(pattern, planted, script.read_text(encoding="utf-8"))
    assert count == 1
    script.write_text(text, encoding="utf-8")
    (copy / "library" / "made_here.py").write_text(OTHER)
    report = trainer.train(network="hina_kohya.lycoris", network_args=LOKR, optimizer=optimizer, steps=1, rc=1)
    assert re.search(said, report.log), report.log[-1500:]
    assert not report.weights.exists()


@pytest.mark.slow
def test_two_processes_have_the_same_bits(trainer):
    report = trainer.train(
        network_args=LOKR, hooks=True, launch="torchrun", steps=3, optimizer="tests.support.rank_probe.Probe"
    )
    first, second = ((report.out / f"rank{rank}.txt").read_text().split() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 3


# The original document's line


@pytest.mark.slow
@pytest.mark.parametrize("words", [ORIGINAL, tuple(word.lower() + "," for word in ORIGINAL)])
def test_the_original_documents_line(trainer, words):
    report = trainer.train(
        network="hina_kohya.lycoris", network_args=LOKR, optimizer="HinaAdamW", optimizer_args=words, steps=3
    )
    assert report.meta["ss_optimizer"].endswith(f"({','.join(ORIGINAL)})")
    lokr_pairs(report)


@pytest.mark.slow
def test_the_original_documents_line_on_the_branch(trainer):
    if trainer.name == "sd-scripts":
        pytest.skip("networks.lokr knows SDXL and Anima, the harness has an SD1.x model alone")
    report = trainer.train(
        network="networks.lokr", network_args=("factor=4",), optimizer="HinaAdamW", optimizer_args=ORIGINAL, steps=3,
        hooks=True, script="sdxl_train_network.py",
    )  # fmt: skip
    lokr_pairs(report)


# Groups by role, for an optimizer that knows nothing of them


@pytest.mark.slow
@pytest.mark.old_layout_too
def test_decay_by_role(trainer):
    args = ("algo=lora", "dora_wd=True", "weight_decay=0.1")
    report = trainer.train(network="hina_kohya.lycoris", network_args=args, optimizer=PROBE, extra=RATES)
    descriptions = ["textencoder", "textencoder no decay", "unet", "unet no decay"]
    assert_rates_are_logged(trainer, report, descriptions)
    assert [group["form"] for group in report.groups] == ["named"] * 4
    assert [group["lr"] for group in report.groups] == [1e-4, 1e-4, 2e-4, 2e-4]
    for description, group in zip(descriptions, report.groups, strict=True):
        still = "no decay" in description
        assert group["weight_decay"] == (0.0 if still else 0.1)
        assert endings(group) == ({"dora_scale"} if still else {"lora_down.weight", "lora_up.weight"})
        assert all(
            name.startswith("lora_te" if "text" in description else "lora_unet") for name in group["param_names"]
        )
    names = [name for group in report.groups for name in group["param_names"]]
    assert set(names) == {name for name in report.tensors if not name.endswith("alpha")}
    assert len(names) == len(set(names))
    tags = {"lora_down.weight": ["_is_lora_A"], "lora_up.weight": ["_is_lora_B"], "dora_scale": ["_is_dora_scale"]}
    for group in report.groups:
        for name, shape, found in zip(group["param_names"], group["shapes"], group["tags"], strict=True):
            ending = name.partition(".")[2]
            assert found == (tags[ending] if len(shape) == 2 or ending == "dora_scale" else [])  # 1x1 convolutions


@pytest.mark.slow
def test_decay_by_pattern(trainer):
    args = (*LOKR, "wd_roles=lokr_w1", "wd_exclude=lora_te*", "weight_decay=0.1")
    report = trainer.train(network="hina_kohya.lycoris", network_args=args, optimizer=PROBE, extra=RATES)
    assert_rates_are_logged(trainer, report, ["textencoder no decay", "unet", "unet no decay"])
    assert [group["weight_decay"] for group in report.groups] == [0.0, 0.1, 0.0]
    assert endings(report.groups[1]) == {"lokr_w1"}


@pytest.mark.slow
def test_decay_by_role_of_a_network_made_from_weights(trainer):
    first = trainer.train(network="networks.lora", steps=1, extra=("--network_dim", "2"))
    again = ("--network_weights", str(first.weights), "--dim_from_weights", *RATES)
    args = ("inner=networks.lora", "weight_decay=0.1", "wd_roles=lora_up")
    report = trainer.train(network="hina_kohya.network", network_args=args, optimizer=PROBE, extra=again, steps=2)
    assert_rates_are_logged(trainer, report, ["textencoder", "textencoder no decay", "unet", "unet no decay"])
    assert [group["weight_decay"] for group in report.groups] == [0.1, 0.0] * 2
    assert {shape[1] for shape in report.groups[2]["shapes"]} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("network", ["oft", "lora_fa", "dylora"])
def test_decay_by_role_where_nothing_is_described(trainer, network):
    args = (f"inner=networks.{network}", "weight_decay=0.1", "wd_exclude=*_unet_*to_q*")
    report = trainer.train(network="hina_kohya.network", network_args=args, optimizer=PROBE, extra=RATES)
    parts = ["unet"] if network == "oft" else ["textencoder", "unet"]
    said = [f"{part}{still}" for part in parts for still in ("", " no decay") if part == "unet" or not still]
    assert_rates_are_logged(trainer, report, said)
    assert [group["weight_decay"] for group in report.groups] == [0.0 if "no" in each else 0.1 for each in said]


@pytest.mark.slow
@pytest.mark.old_layout_too
@pytest.mark.parametrize(
    ("algo", "fast"),
    [
        (LOKR, {"lokr_w2_b", "lokr_w2"}),
        (("algo=loha",), {"hada_w2_a"}),
        (("algo=glora",), {"a2.weight", "b2.weight"}),
        (("algo=lora", "dora_wd=True"), {"lora_up.weight"}),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_lora_plus(trainer, algo, fast):
    args = (*algo, "loraplus_lr_ratio=16")
    report = trainer.train(network="hina_kohya.lycoris", network_args=args, optimizer=PROBE, extra=RATES)
    assert_rates_are_logged(trainer, report, ["textencoder", "textencoder plus", "unet", "unet plus"])
    slow_text, fast_text, slow, quick = report.groups
    assert [slow_text["lr"], fast_text["lr"], slow["lr"], quick["lr"]] == pytest.approx([1e-4, 16e-4, 2e-4, 32e-4])
    assert endings(quick) | endings(fast_text) <= fast
    assert not (endings(slow) | endings(slow_text)) & fast
    plain = trainer.train(network="lycoris.kohya", network_args=args, optimizer=PROBE, extra=RATES)
    assert plain.losses[0] == report.losses[0]
    assert (plain.losses != report.losses) == ("algo=lora" not in algo)


@pytest.mark.slow
def test_several_text_encoders(trainer):
    if trainer.name == "sd-scripts":
        pytest.skip("the harness has an SD1.x model alone")
    report = trainer.train(
        network="hina_kohya.network", network_args=("inner=networks.lokr", "weight_decay=0.1", "wd_exclude=*_q*"),
        optimizer=PROBE, script="sdxl_train_network.py",
        extra=("--text_encoder_lr", "1e-4", "2e-4", "--unet_lr", "3e-4"),
    )  # fmt: skip
    parts = ["textencoder 1", "textencoder 2", "unet"]
    assert_rates_are_logged(trainer, report, [part + still for part in parts for still in ("", " no decay")])
    assert [group["lr"] for group in report.groups] == [1e-4, 1e-4, 2e-4, 2e-4, 3e-4, 3e-4]


# Nothing changes that nobody asked for


@pytest.mark.parametrize(
    ("network", "optimizer"),
    [
        ("lycoris.kohya", "AdamW"),
        ("networks.lora", "AdamW"),
        ("networks.oft", "AdamW"),
        ("lycoris.kohya", "adv_optm.AdamW_adv"),
    ],
)
def test_without_options_every_bit_is_the_same(trainer, network, optimizer):
    args = LOKR if network == "lycoris.kohya" else ()
    if optimizer != "AdamW":
        pytest.importorskip("adv_optm")
    runs = [
        trainer.train(network=network, network_args=args, optimizer=optimizer, steps=6, lr="1e-2", hooks=hooks)
        for hooks in (False, True)
    ]
    assert len(runs[0].losses) == 6
    assert runs[0].losses == runs[1].losses
    assert runs[0].bits == runs[1].bits
    times = {"ss_training_started_at", "ss_training_finished_at", "ss_session_id", "modelspec.date"}
    meta = [{key: value for key, value in run.meta.items() if key not in times} for run in runs]
    assert meta[0] == meta[1]
    # and the steps did train
    assert runs[0].bits != trainer.train(network=network, network_args=args, steps=1, lr="1e-2").bits


# Errors


def plugin(folder, package, entries, module=""):
    """A folder as pip makes it: one module and its entry points."""
    name = package.replace("-", "_")
    (folder / f"{name}.py").write_text(module)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sd_scripts.optimizers]\n" + "\n".join(entries))


@pytest.mark.slow
def test_an_unknown_name_lists_near_ones(trainer):
    report = trainer.train(network="hina_kohya.lycoris", network_args=LOKR, optimizer="HinaAdmW", rc=1)
    assert "there is no optimizer 'HinaAdmW'; did you mean HinaAdamW" in report.log


@pytest.mark.slow
def test_an_optimizer_of_another_package(trainer, tmp_path):
    module = "import torch\n\n\nclass Theirs(torch.optim.SGD):\n    pass\n"
    plugin(tmp_path, "their-package", ["TheirSGD = their_package:Theirs"], module)
    report = trainer.train(
        network="hina_kohya.lycoris", network_args=LOKR, plugins=(tmp_path,), optimizer="theirsgd",
        optimizer_args=("momentum=0.5", "nesterov=true"), steps=2,
    )  # fmt: skip
    assert report.meta["ss_optimizer"] == "their_package.Theirs(momentum=0.5,nesterov=True)"


@pytest.mark.slow
def test_a_clash_names_both_packages(trainer, tmp_path):
    plugin(tmp_path, "one-package", ["Same = one_package:One"])
    plugin(tmp_path, "another-package", ["same = another_package:Other"])
    report = trainer.train(network="hina_kohya.lycoris", plugins=(tmp_path,), optimizer="Same", rc=1)
    assert "one-package" in report.log
    assert "another-package" in report.log
    assert "UserError" in report.log


@pytest.mark.slow
def test_a_bug_of_ours_is_not_swallowed(trainer, tmp_path):
    (tmp_path / "broken_plugin.py").write_text(
        "from unittest import mock\n"
        "from hina_kohya.trainers import tags\n"
        "from hina_kohya.lycoris import create_network\n"
        "mock.patch.object(tags, 'attach', side_effect=TypeError('a bug of ours')).start()\n"
    )
    try:
        report = trainer.train(network="broken_plugin", network_args=("preset=attn-mlp",), plugins=(tmp_path,), rc=1)
    finally:
        mock.patch.stopall()
    assert "PluginError" in report.log
    assert "a bug of ours" in report.log


@pytest.mark.slow
def test_a_type_error_of_the_network_is_sd_scripts_business_still(trainer):
    report = trainer.train(
        network="hina_kohya.network", network_args=("inner=tests.support.order_probe", "fails=1"), steps=2
    )
    calls = [event for event in report.events if event.startswith("prepare_optimizer_params")]
    assert calls == ["prepare_optimizer_params None None 0.001", "prepare_optimizer_params None None"]
    assert len(report.losses) == 2


def test_the_hooks_are_gone_after_a_training():
    """What the other tests rely on: this process is as before."""
    from hina_kohya.trainers import hooks

    assert not hooks.active()
