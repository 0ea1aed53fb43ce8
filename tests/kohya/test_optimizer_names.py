"""--optimizer_type: registered names first, sd-scripts' own untouched, and get_optimizer in the middle."""

from argparse import Namespace
from importlib.metadata import EntryPoint
from unittest import mock

import pytest
import torch

from hina_kohya import HinaAdamW
from hina_kohya.trainers import optimizer_names, optimizers
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.optimizer_names import resolve
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS


@pytest.fixture
def entries(monkeypatch):
    found = [EntryPoint("HinaAdamW", "hina_kohya:HinaAdamW", optimizer_names.GROUP)]
    monkeypatch.setattr(optimizer_names, "registered", lambda folders: found)
    return lambda name, value: found.append(EntryPoint(name, value, optimizer_names.GROUP))


@pytest.mark.parametrize(
    "name", ["HinaAdamW", "hinaadamw", " HINAADAMW ", "hina_kohya.HinaAdamW", "hina_kohya.CustomAdamW"]
)
def test_registered(entries, name):
    assert resolve(name, SD_SCRIPTS) is HinaAdamW


@pytest.mark.parametrize(
    "name", ["", None, "AdamW", "adamw8bit", "Prodigy", "adafactor", "RAdam", "SGD", "torch.optim.SGD"]
)
def test_left_to_sd_scripts(entries, name):
    assert resolve(name, SD_SCRIPTS) is None


def test_a_package_cannot_take_over_a_name_of_sd_scripts(entries):
    entries("AdamW", "torch.optim:SGD")
    entries("RAdam", "torch.optim:SGD")
    assert resolve("AdamW", SD_SCRIPTS) is resolve("RAdam", SD_SCRIPTS) is None


def test_another_package(entries):
    entries("TheirSGD", "torch.optim:SGD")
    assert resolve("theirsgd", SD_SCRIPTS) is torch.optim.SGD
    assert resolve("torch.optim.SGD", SD_SCRIPTS) is torch.optim.SGD


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("HinaAdmW", "did you mean HinaAdamW"),
        ("Prodgy", "did you mean Prodigy"),
        ("radam", "did you mean"),
        ("hina_kohya.HinaAdmW", "cannot be loaded"),
    ],
)
def test_unknown(entries, name, said):
    with pytest.raises(UserError, match=said):
        resolve(name, SD_SCRIPTS)


@pytest.mark.parametrize("name", ["adamw", "AdamW8bit", "Adafactor", "SGD", ""])
def test_left_to_musubi_tuner(entries, name):
    assert resolve(name, MUSUBI) is None


def test_what_musubi_tuner_does_not_know_is_said_with_the_path_to_type(entries):
    assert resolve("hinaadamw", MUSUBI) is HinaAdamW
    with pytest.raises(UserError, match=r"musubi-tuner has no optimizer 'Prodigy'; write prodigyopt\.Prodigy"):
        resolve("Prodigy", MUSUBI)


def test_our_names_need_no_metadata(monkeypatch):
    monkeypatch.setattr(optimizer_names, "registered", lambda folders: [])
    assert resolve("copTim8BIT", SD_SCRIPTS).__name__ == "COptim8bit"
    assert {optimizer_names.package(entry) for entry in optimizer_names.entries()} == {"hina-kohya"}


def test_a_clash_names_both(entries):
    entries("hinaadamw", "torch.optim:SGD")
    with pytest.raises(UserError, match=r"claimed by .*hina_kohya\.HinaAdamW.* and .*torch\.optim\.SGD"):
        resolve("HinaAdamW", SD_SCRIPTS)


def settings(**more):
    return Namespace(**{"optimizer_type": "HinaAdamW", "optimizer_args": None, "learning_rate": 1e-3, **more})


def params():
    return [{"params": {"lora_unet_a.lora_up.weight": torch.nn.Parameter(torch.zeros(4, 2))}.values(), "lr": 2e-3}]


def theirs(args, trainable_params):
    return "theirs", "", torch.optim.SGD(trainable_params, lr=args.learning_rate)


def get(given, groups=None):
    return optimizers.get_optimizer(SD_SCRIPTS, theirs, None, (given, groups or params()), {})


def test_an_optimizer_of_ours_with_forgiving_arguments(entries):
    name, described, optimizer = get(settings(optimizer_args=["state=fp32", "use_grams=true", "betas=(0.9,", "0.95)"]))
    assert (name, described) == (
        "hina_kohya.optim.hina_adamw.HinaAdamW",
        "state=fp32,use_grams=True,betas=(0.9, 0.95)",
    )
    assert isinstance(optimizer, HinaAdamW)
    assert optimizer.param_groups[0]["lr"] == 2e-3
    assert optimizer.param_groups[0]["param_names"] == ["lora_unet_a.lora_up.weight"]


def test_musubi_tuner_gets_the_modes_of_the_optimizer(entries):
    *_, optimizer, train, evaluate = optimizers.get_optimizer(MUSUBI, theirs, None, (settings(), params()), {})
    assert isinstance(optimizer, HinaAdamW)
    assert train() is evaluate() is None

    class Modes(torch.optim.SGD):
        mode = ""

        def train(self):
            self.mode = "train"

        def eval(self):
            self.mode = "eval"

    entries("Modes", "anywhere:Modes")
    with mock.patch.object(optimizer_names, "_load", return_value=Modes):
        *_, optimizer, train, evaluate = optimizers.get_optimizer(
            MUSUBI, theirs, None, (settings(optimizer_type="modes"), params()), {}
        )
    evaluate()
    assert optimizer.mode == "eval"
    train()
    assert optimizer.mode == "train"


def test_what_a_trainer_adds_to_named_parameters_gets_a_name(entries):
    weight, bias = torch.nn.Parameter(torch.zeros(4, 2)), torch.nn.Parameter(torch.zeros(4))
    groups = [
        {"params": [("lora_unet_a.lora_up.weight", weight), bias]},
        {"params": [torch.nn.Parameter(torch.ones(2))]},
    ]
    optimizer = get(settings(), groups)[2]
    assert [group["param_names"] for group in optimizer.param_groups] == [
        ["lora_unet_a.lora_up.weight", "added.0"], ["added.1"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["HinaAdamW", "SGD"])
def test_trainers_before_descriptions_hand_on_the_whole_pair(entries, name):
    """sd-scripts before 0.9, with a network of today."""
    groups = params()
    optimizer = get(settings(optimizer_type=name), (groups, ["unet plus"]))[2]
    assert [group["lr"] for group in optimizer.param_groups] == [2e-3]


def test_sd_scripts_keeps_its_own(entries):
    assert get(settings(optimizer_type="SGD"))[0] == "theirs"
    assert get(settings(use_8bit_adam=True))[0] == "theirs"
    assert get(settings(use_lion_optimizer=True))[0] == "theirs"


def test_by_keyword(entries):
    built = optimizers.get_optimizer(SD_SCRIPTS, theirs, None, (), {"args": settings(), "trainable_params": params()})
    assert isinstance(built[2], HinaAdamW)


def test_train_is_called_once(entries):
    class Eager(torch.optim.SGD):
        trained = 0

        def train(self):
            self.trained += 1

    assert optimizers.build(Eager, None, params(), 1e-3)[2].trained == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (settings(optimizer_args=["use_catious=true"]), "did you mean use_cautious"),
        (settings(optimizer_args=["eps=-1"]), "eps = -1 is outside"),
        (settings(fused_backward_pass=True), "works with Adafactor only"),
    ],
)
def test_refused(entries, given, said):
    with pytest.raises(UserError, match=said):
        get(given)


def test_a_decay_that_cannot_act_is_refused(entries):
    class Plain(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

    groups = [{**params()[0], "decays": True, "weight_decay": 0.1}]
    with pytest.raises(UserError, match="Plain has no weight_decay"):
        optimizers.get_optimizer(
            SD_SCRIPTS, lambda a, p: ("", "", Plain(p, 1e-3)), None, (settings(optimizer_type="SGD"), groups), {}
        )
