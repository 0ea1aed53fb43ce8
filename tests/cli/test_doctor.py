"""`hina-kohya doctor`: what is installed against what is asked for, and what is known to break."""

import sys
from importlib.metadata import version as real_version

import pytest

from hina_kohya.cli import main
from hina_kohya.kohya import environment

SCRIPT = """
import importlib
from library import {module}

class NetworkTrainer:
    def train(self, args):
        network = importlib.import_module(args.network_module).create_network(1.0, 4, 1, None, None, None)
        params = network.prepare_optimizer_params(None, None, 1e-4)
        optimizer = {module}.get_optimizer(args, params)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout that pins what is installed here; returns the requirements file."""
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    (tmp_path / "library").mkdir()
    for name in ("train_network.py", "library/train_util.py", "library/__init__.py"):
        (tmp_path / name).touch()
    (tmp_path / "library" / "train_util.py").write_text("def get_optimizer(args, trainable_params): ...\n")
    (tmp_path / "train_network.py").write_text(SCRIPT.format(module="train_util"))
    file = tmp_path / "requirements.txt"
    file.write_text("accelerate==1.6.0\n# a comment\n-e .\ntransformers  # any\n", encoding="utf-8")
    return file


@pytest.fixture
def versions(monkeypatch):
    changed = {"accelerate": "1.6.0"}
    monkeypatch.setattr(environment, "version", lambda name: changed.get(name) or real_version(name))
    return changed


def run(checkout, capsys):
    code = main(["doctor", "--sd-scripts", str(checkout.parent)])
    return code, capsys.readouterr().out


def test_in_order(checkout, versions, capsys):
    code, text = run(checkout, capsys)
    assert "nothing is wrong here" in text
    assert code == 0
    assert "lycoris-lora" in text
    assert "sha256" in text
    assert "sd-scripts unknown version: not patched" in text
    assert "hooks: active in 1 of 1 adapter trainers of sd-scripts no git" in text
    assert "  train_network.py: train_network.py: train calls get_optimizer of library/train_util.py" in text


def test_a_trainer_that_calls_another_function(checkout, versions, capsys):
    (checkout.parent / "library" / "made_here.py").write_text("def get_optimizer(args, trainable_params): ...\n")
    (checkout.parent / "train_network.py").write_text(SCRIPT.format(module="made_here"))
    code, text = run(checkout, capsys)
    assert code == 1
    assert (
        "hooks: cannot act here: train_network.py: train_network.py: train calls get_optimizer of library/made_h"
        in text
    )
    assert "the hooks cannot act in train_network.py" in text
    assert "nothing is wrong here" not in text


def test_a_checkout_that_nobody_has_seen(checkout, versions, capsys):
    (checkout.parent / "train_network.py").write_text("from library.next_year import run\nrun()\n")
    code, text = run(checkout, capsys)
    assert code == 0
    assert "hooks: not looked at: train_network.py: train_network.py call no get_optimizer that could be found" in text
    assert "nothing is wrong here" not in text
    assert "not all was looked at" in text


def test_musubi_tuner(tmp_path, versions, monkeypatch, capsys):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    folder = tmp_path / "src" / "musubi_tuner"
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "trainer_base.py").write_text(
        "import importlib\nclass NetworkTrainer:\n    def get_optimizer(self, args, trainable_params): ...\n"
        "    def train(self, args):\n"
        "        network = importlib.import_module(args.network_module).create_network(1.0, 4, 1, None, None, None)\n"
        "        params, names = network.prepare_optimizer_params(unet_lr=args.learning_rate)\n"
        "        self.get_optimizer(args, params)\n"
    )
    (folder / "hv_train_network.py").write_text("from musubi_tuner.training.trainer_base import NetworkTrainer\n")
    (folder / "wan_train_network.py").write_text(
        "from musubi_tuner.hv_train_network import NetworkTrainer\nclass WanNetworkTrainer(NetworkTrainer): ...\n"
    )
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["accelerate==1.2.3"]\n')
    assert main(["doctor", "--musubi", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "hooks: active in 2 of 2 adapter trainers of musubi-tuner" in text
    assert "accelerate 1.6.0 is not the ==1.2.3 that the trainer pins" in text
    assert "sd-scripts" not in text.partition("optimizers of")[0].replace("--sd-scripts", "")


def test_nothing_to_look_at(tmp_path, versions, monkeypatch, capsys):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    main(["doctor"])
    text = capsys.readouterr().out
    assert "whether they act was not looked at: no checkout is known" in text
    assert "nothing is wrong here" not in text


def test_another_version_than_the_pinned_one(checkout, versions, capsys):
    versions["accelerate"] = "1.15.0"
    code, text = run(checkout, capsys)
    assert code == 1
    assert "accelerate 1.15.0 is not the ==1.6.0 that the trainer pins; pip install 'accelerate==1.6.0'" in text


def test_a_local_build_fits_its_pin(checkout, versions, capsys):
    checkout.write_text("torch==2.13.0\n")
    versions["torch"] = "2.13.0+cu128"
    assert run(checkout, capsys)[0] == 0


@pytest.mark.parametrize(
    ("package", "found", "said"),
    [
        ("lycoris-lora", "3.2.0.post1", "on_epoch_start"),
        ("lycoris-lora", "4.1.3", "preset=full"),
        ("adv-optm", "2.5.16", "Lion_adv"),
        ("adv-optm", "2.6.0", "Simplified_AdEMAMix"),
        ("pytorch-optimizer", "3.9.0", "Grams"),
        ("bitsandbytes", "0.44.1", "8-bit states"),
        ("prodigy-plus-schedule-free", "2.0.1", "do not resume"),
        ("torch", "2.5.1", "named parameters"),
    ],
)
def test_known_to_break(checkout, versions, capsys, package, found, said):
    versions[package] = found
    assert f"{package} {found}: " in (text := run(checkout, capsys)[1])
    assert said in text


@pytest.mark.parametrize(("package", "found"), [("lycoris-lora", "3.2.0.post2"), ("adv-optm", "2.2.3")])
def test_not_known_to_break(checkout, versions, capsys, package, found):
    versions[package] = found
    assert f"{package} {found}: " not in run(checkout, capsys)[1]


def test_a_package_that_hides_networks(checkout, versions, tmp_path_factory, monkeypatch, capsys):
    other = tmp_path_factory.mktemp("site")
    (other / "networks").mkdir()
    (other / "networks" / "__init__.py").touch()
    monkeypatch.syspath_prepend(other)
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    code, text = run(checkout, capsys)
    assert code == 1
    assert "hides sd-scripts' networks" in text


def test_no_checkout(tmp_path, capsys):
    assert main(["doctor", "--sd-scripts", str(tmp_path)]) == 2
    assert "is no checkout of sd-scripts" in capsys.readouterr().err
