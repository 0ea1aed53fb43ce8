"""Where trainers make their optimizer, read off their source: known, unknown, planted, and what nobody has seen."""

import os
from pathlib import Path

import pytest

from hina_kohya.check import printing, report
from hina_kohya.check.finding import Level
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.call_sites import Outcome
from hina_kohya.trainers.checkouts import TRAINERS, Checkout
from hina_kohya.trainers.facts import places
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.syntax import tree
from tests.support import old_layout

ACTS, CANNOT, NOT_LOOKED_AT = Outcome.ACTS, Outcome.CANNOT, Outcome.NOT_LOOKED_AT
GROUPS = "        params, _ = network.prepare_optimizer_params({})\n"
SD_TRAINER = """
import importlib
{imports}

class NetworkTrainer:
    def train(self, args):
        network = importlib.import_module(args.network_module).create_network(1.0, 4, 1, None, None, None)
        params = {groups}
        optimizer = {call}(args, params)
"""
SD_GROUPS = "network.prepare_optimizer_params(text_encoder_lr, args.unet_lr, args.learning_rate)"
MADE = "def get_optimizer(args, trainable_params): ...\n"
SD_FILES = {
    "library/train_util.py": MADE,
    "library/made_here.py": MADE,
    "library/again.py": "from .train_util import *\n",
}


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def sd_scripts(folder, imports="from library import train_util", call="train_util.get_optimizer", groups=SD_GROUPS):
    write(folder, SD_FILES | {"train_network.py": SD_TRAINER.format(imports=imports, call=call, groups=groups)})
    return checkouts.at(folder)


@pytest.mark.parametrize(
    ("imports", "call", "outcome"),
    [
        ("from library import train_util", "train_util.get_optimizer", ACTS),
        ("import library.train_util as train_util", "train_util.get_optimizer", ACTS),
        ("import library.train_util", "library.train_util.get_optimizer", ACTS),
        ("from library.train_util import get_optimizer", "get_optimizer", ACTS),
        ("from library.train_util import get_optimizer as make", "make", NOT_LOOKED_AT),
        ("from library import made_here", "made_here.get_optimizer", CANNOT),
        ("from library.made_here import get_optimizer", "get_optimizer", CANNOT),
        ("from library import made_here", "made_here.optimizer_of", NOT_LOOKED_AT),
        ("from library import again", "again.get_optimizer", NOT_LOOKED_AT),
        ("", "self.tools.get_optimizer", NOT_LOOKED_AT),
        ("", "get_optimizer", NOT_LOOKED_AT),
        (MADE, "get_optimizer", CANNOT),
    ],
)
def test_the_function_that_is_called(tmp_path, imports, call, outcome):
    verdict = sd_scripts(tmp_path, imports, call).verdict("train_network.py")
    assert verdict.outcome is outcome, verdict
    assert verdict.why.startswith("train_network.py")


@pytest.mark.parametrize(
    ("groups", "outcome"),
    [
        (SD_GROUPS, ACTS),
        ("network.prepare_optimizer_params_with_multiple_te_lrs(a, b, c)", ACTS),
        ("network.prepare_optimizer_params(a, b)", ACTS),
        ("network.prepare_optimizer_params(unet_lr=a)", CANNOT),
        ("network.prepare_optimizer_params(a, b, c, d)", CANNOT),
        ("network.prepare_optimizer_params(lr=a)", CANNOT),
        ("list(network.parameters())", NOT_LOOKED_AT),
    ],
)
def test_the_call_for_param_groups(tmp_path, groups, outcome):
    verdict = sd_scripts(tmp_path, groups=groups).verdict("train_network.py")
    assert verdict.outcome is outcome, verdict


def test_what_cannot_be_read_was_not_looked_at(tmp_path):
    checkout = sd_scripts(tmp_path)
    assert checkout.verdict("flux_train_network.py").outcome is NOT_LOOKED_AT
    (tmp_path / "train_network.py").write_text("def train(:")
    assert checkout.verdict("train_network.py").outcome is NOT_LOOKED_AT
    (tmp_path / "train_network.py").write_text("from library.of_next_year import main\nmain()\n")
    verdict = checkout.verdict("train_network.py")
    assert (verdict.outcome, verdict.why) == (
        NOT_LOOKED_AT, "train_network.py call no get_optimizer that could be found",
    )  # fmt: skip


def musubi(folder, base="NetworkTrainer", method="get_optimizer", call="self.get_optimizer(args, params)"):
    name = "src/musubi_tuner/{}.py".format
    write(folder, {
        name("training/trainer_base"): f"import importlib\nclass {base}:\n"
        f"    def {method}(self, args, trainable_params): ...\n"
        "    def train(self, args):\n"
        "        network = importlib.import_module(args.network_module).create_arch_network(1.0)\n"
        + GROUPS.format("unet_lr=args.learning_rate")
        + f"        optimizer = {call}\n",
        name("hv_train_network"): f"from musubi_tuner.training.trainer_base import {base}\n",
        name("wan_train_network"): f"from musubi_tuner.hv_train_network import {base}\n"
        f"class WanNetworkTrainer({base}): ...\n",
        name("hv_train"): "class FineTuningTrainer:\n"
        "    def get_optimizer(self, args, trainable_params): ...\n"
        "    def train(self, args):\n"
        "        self.get_optimizer(args, [])\n",
        "wan_train_network.py": "from musubi_tuner.wan_train_network import main\n",
    })  # fmt: skip
    return checkouts.at(folder)


def test_a_method_through_its_heirs(tmp_path):
    checkout = musubi(tmp_path)
    assert checkout.trainer is MUSUBI
    assert [path.name for path in checkout.scripts] == ["hv_train_network.py", "wan_train_network.py"]
    for name in ("wan_train_network.py", "hv_train_network.py"):
        verdict = checkout.verdict(name)
        assert verdict.outcome is ACTS
        assert verdict.why == "musubi_tuner/training/trainer_base.py: train calls NetworkTrainer.get_optimizer"


def test_a_class_that_comes_into_being_after_the_hooks(tmp_path):
    verdict = musubi(tmp_path).verdict("hv_train.py")
    assert verdict.outcome is CANNOT
    assert "of the script itself" in verdict.why


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"base": "Trainer"}, CANNOT),
        ({"method": "make_optimizer", "call": "self.make_optimizer(args, params)"}, NOT_LOOKED_AT),
        ({"method": "make_optimizer"}, NOT_LOOKED_AT),
    ],
)
def test_another_class_or_method(tmp_path, change, outcome):
    assert musubi(tmp_path, **change).verdict("wan_train_network.py").outcome is outcome


@pytest.mark.parametrize("layout", ["new", "old"])
def test_the_doubles(layout, tmp_path):
    home = old_layout.DOUBLE if layout == "new" else old_layout.make(tmp_path / "old")
    module = "optimizer" if layout == "new" else "train_util"
    for script in ("train_network.py", "sdxl_train_network.py"):
        verdict = Checkout(SD_SCRIPTS, home).verdict(script)
        assert verdict.outcome is ACTS, verdict
        assert verdict.why == f"train_network.py: train calls get_optimizer of library/{module}.py"


REAL = [trainer for trainer in TRAINERS if os.environ.get(trainer.home)]


@pytest.mark.skipif(not REAL, reason="needs SD_SCRIPTS_HOME or MUSUBI_HOME")
def test_every_script_of_a_real_checkout():
    for trainer in REAL:
        checkout = Checkout(trainer, Path(os.environ[trainer.home]))
        assert len(checkout.scripts) > 6
        for script in checkout.scripts:
            verdict = checkout.verdict(script.name)
            assert verdict.outcome is ACTS, (script, verdict)


@pytest.mark.skipif(SD_SCRIPTS not in REAL, reason="needs SD_SCRIPTS_HOME")
def test_what_findings_cite_is_there():
    checkout = Checkout(SD_SCRIPTS, Path(os.environ["SD_SCRIPTS_HOME"]))
    new = (checkout.root / "library" / "optimizer.py").is_file()
    for function, (since, before) in places.FILES.items():
        assert defines(checkout.root / (since if new else before), function), function


@pytest.mark.skipif(MUSUBI not in REAL, reason="needs MUSUBI_HOME")
def test_what_findings_cite_is_there_in_musubi_tuner():
    root = Path(os.environ["MUSUBI_HOME"])
    for function, file in places.OF_MUSUBI.values():
        assert defines(root / file, function), function


def defines(file, dotted):
    nodes = tree(file).body
    for name in dotted.split("."):
        found = [node for node in nodes if getattr(node, "name", None) == name]
        if not found:
            return False
        nodes = found[0].body
    return True


# What `hina-kohya check` makes of it

SD_CONFIG = """
pretrained_model_name_or_path = "<model>"
train_data_dir = "<images>"
output_dir = "out"
network_module = "hina_kohya.lycoris"
network_args = ["algo=lokr", "preset=attn-mlp"]
network_dim = 4
optimizer_type = "HinaAdamW"
learning_rate = 1e-4
"""
MUSUBI_CONFIG = """
dit = "<model>"
dataset_config = "<dataset>"
sdpa = true
output_dir = "out"
output_name = "mine"
network_module = "hina_kohya.lycoris"
network_args = ["algo=lokr", "preset=attn-mlp"]
network_dim = 4
optimizer_type = "HinaAdamW"
learning_rate = 1e-4
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    for trainer in TRAINERS:
        monkeypatch.delenv(trainer.home, raising=False)
    monkeypatch.chdir(tmp_path)

    def written(text):
        (tmp_path / "run.toml").write_text(text)
        return "run.toml"

    return written


def checked(config, text, checkout=None, **how):
    found = report.check(config(text), checkout=checkout, **how)
    return [each.rule for each in wrong(found)], "\n".join(printing.text(found))


def wrong(found):
    """Without what cannot be looked at here."""
    return [each for each in found.findings if each.level is not Level.NOT_LOOKED_AT]


def test_hooks_that_act(config, tmp_path):
    rules, text = checked(config, SD_CONFIG, sd_scripts_with_options(tmp_path / "sd"), script="train_network.py")
    assert rules == []
    assert "hooks: active, network_module = hina_kohya.lycoris; train_network.py: train calls get_optimizer of" in text


@pytest.mark.parametrize("launched", [False, True])
def test_hooks_that_cannot_act(config, tmp_path, launched):
    checkout = sd_scripts_with_options(tmp_path / "sd", "from library import made_here", "made_here.get_optimizer")
    module = "lycoris.kohya" if launched else "hina_kohya.lycoris"
    text = SD_CONFIG.replace("hina_kohya.lycoris", module)
    rules, text = checked(config, text, checkout, script="train_network.py", launched=launched)
    assert set(rules) == {"hooks_cannot_act", "hooks_needed"}
    assert "cannot act here: train_network.py: train calls get_optimizer of library/made_here.py" in text
    dotted = SD_CONFIG.replace("hina_kohya.lycoris", "lycoris.kohya").replace('"HinaA', '"hina_kohya.HinaA')
    assert checked(config, dotted, checkout, script="train_network.py")[0] == []


def test_hooks_that_were_not_looked_at(config, tmp_path):
    _, text = checked(config, SD_CONFIG, script="train_network.py")
    assert "not looked at: hooks: whether hina_kohya's hooks act: no checkout of sd-scripts is known" in text
    checkout = sd_scripts_with_options(tmp_path / "sd", call="train_util.optimizer_of")
    _, text = checked(config, SD_CONFIG, checkout, script="train_network.py")
    assert "whether hina_kohya's hooks act: train_network.py call no get_optimizer" in text


def sd_scripts_with_options(folder, *how, **more):
    """Its options are those that are shipped."""
    checkout = sd_scripts(folder, *how, **more)
    names = ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "network_module", "optimizer_type")
    options = [f"'--{name}', type=str" for name in names]
    options += ["'--network_args', nargs='*'", "'--network_dim', type=int", "'--learning_rate', type=float"]
    lines = [f"    parser.add_argument({option})\n" for option in options]
    with (folder / "train_network.py").open("a") as file:
        file.write("def setup_parser():\n    parser = argparse.ArgumentParser()\n")
        file.writelines([*lines, "    return parser\n"])
    return checkout


def test_musubi_tuner_is_told_by_its_keys(config):
    rules, text = checked(config, MUSUBI_CONFIG + 'task = "t2v-A14B"\ndit_high_noise = "<model>"\n')
    assert rules == []
    assert "for wan_train_network.py of musubi-tuner (because of task, dit_high_noise; --script" in text
    assert "has, too" in checked(config, MUSUBI_CONFIG + 'task = "t2v-A14B"\n')[1]
    assert "options of musubi-tuner 0.3.4, as shipped" in text


@pytest.mark.parametrize(
    ("network", "script"),
    [(name, script) for name, script in MUSUBI.network_scripts.items() if name != "_flux"],
)
def test_musubi_tuner_is_told_by_its_networks(config, network, script):
    text = MUSUBI_CONFIG.replace("hina_kohya.lycoris", "hina_kohya.network")
    text = text.replace('["algo=lokr", "preset=attn-mlp"]', f'["inner=networks.lora{network}", "loraplus_lr_ratio=4"]')
    rules, said = checked(config, text)
    assert rules == []
    assert f"for {script} of musubi-tuner (because of networks.lora{network})" in said


MUSUBI_MISTAKES = {
    "-dit": ("missing_for_musubi", "dit"),
    "-sdpa": ("missing_for_musubi", "sdpa"),
    "-optimizer_type": ("missing_for_musubi", "optimizer_type"),
    "unet_lr = 1e-4": ("unknown_key", "unet_lr"),
    'network_args = ["algo=lokr", "preset=attn-mlp", "facter=4"]': ("network_argument_unread", "network_args"),
    'network_args = ["algo=lokr", "preset=attn-mlp", "weight_decay=-1"]': ("hina_option_refused", "network_args"),
    'network_args = ["algo=lokr", "preset=attn-mlp", "keep_best=true", "stop_after=3"]': (
        "nothing_held_out_for_musubi",
        "network_args",
    ),
    'network_args = ["algo=lokr", "preset=attn-mlp", "keep_best=true", "held_out=x.toml"]': (
        "nothing_held_out_for_musubi",
        "network_args",
    ),
    'optimizer_args = ["use_catious=true"]': ("optimizer_refuses", "optimizer_args"),
    'optimizer_type = "HinaAdmW"': ("optimizer_unknown", "optimizer_type"),
    'network_module = "networks.lora_wam"\noptimizer_type = "AdamW"\nnetwork_args = []': (
        "network_missing",
        "network_module",
    ),
    'learning_rate = "1e-4"': ("wrong_type", "learning_rate"),
    'lr_scheduler = "rexx"': ("scheduler_unknown", "lr_scheduler"),
}


@pytest.mark.parametrize("mistake", MUSUBI_MISTAKES)
def test_mistakes_in_musubi_tuners_configs(config, mistake):
    keys = [line.lstrip("-").partition(" =")[0] for line in mistake.splitlines()]
    lines = [line for line in MUSUBI_CONFIG.splitlines() if line.partition(" =")[0] not in keys]
    lines += [] if mistake.startswith("-") else [mistake]
    found = report.check(config("\n".join(lines)), script="wan_train_network.py")
    assert [(each.rule, each.key) for each in wrong(found)] == [MUSUBI_MISTAKES[mistake]]
    assert "sd-scripts" not in wrong(found)[0].evidence


def test_what_only_musubi_tuner_takes(config):
    assert checked(config, MUSUBI_CONFIG + 'lr_scheduler = "rex"\nlr_warmup_steps = 10\n')[0] == []


def test_musubi_tuners_dataset_files(config):
    good = "[general]\nresolution = [960, 544]\n[[datasets]]\nvideo_directory = '.'\ntarget_frames = [1, 25]\n"
    assert checked(config, good)[0] == []
    for bad, key in ((good + "image_dir = '.'\n", "image_dir"), (good.replace("target_frames", "frames"), "frames")):
        found = report.check(config(bad))
        assert [key in each.key for each in found.findings] == [True]
