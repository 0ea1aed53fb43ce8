"""--optimizer_type and --optimizer_args: sd-scripts' meaning, better errors."""

import pytest
import torch

from hina_kohya.train import optimizer
from hina_kohya.train.errors import UserError


def groups():
    return [{"params": {"w": torch.nn.Parameter(torch.zeros(2, 2))}.values(), "lr": 1e-3}]


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=(0.9,0.99)", (0.9, 0.99)),
        ("a=0.9,0.95", (0.9, 0.95)),
        ("a= (0.9, 0.95)", (0.9, 0.95)),
        ("a=None", None),
        ("a=True", True),
        ("a=1e-8", 1e-8),
        ("a='fp32'", "fp32"),
        ("a={'x': 1}", {"x": 1}),
        ("technique.option=1", 1),
    ],
)
def test_literals(word, value):
    (parsed,) = optimizer.parse_args([word]).values()
    assert parsed == value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("mode=fp32", "write \"mode='fp32'\""),
        ("flag=true", "write flag=True"),
        ("weight_decay", "must be name=value"),
        ("betas =(0.9,0.95)", "without spaces around the name"),
        ("weight_decay=0.5,", "ends in a comma"),
        ("lr=1", "--learning_rate"),
        ("wd=1/3", "not a Python literal"),
    ],
)
def test_bad_literals(word, said):
    with pytest.raises(UserError, match="optimizer_args") as caught:
        optimizer.parse_args([word])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("AdamW", "torch.optim.adamw.AdamW"),
        ("adamw", "torch.optim.adamw.AdamW"),
        ("", "torch.optim.adamw.AdamW"),
        ("SGD", "torch.optim.sgd.SGD"),
        ("torch.optim.RAdam", "torch.optim.radam.RAdam"),
        ("AdamW8bit", "bitsandbytes.optim.adamw.AdamW8bit"),
        ("Lion", "bitsandbytes.optim.lion.Lion"),
        ("HinaAdamW", "hina_kohya.optim.hina_adamw.HinaAdamW"),
        ("hinaadamw", "hina_kohya.optim.hina_adamw.HinaAdamW"),
        ("hina_kohya.HinaAdamW", "hina_kohya.optim.hina_adamw.HinaAdamW"),
    ],
)
def test_names(name, path):
    cls = optimizer.resolve(name)
    assert f"{cls.__module__}.{cls.__qualname__}" == path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AdmaW", "did you mean AdamW?"),
        ("HinaAdam", "did you mean HinaAdamW?"),
        ("torch.optim.Adamm", "did you mean Adam"),
        ("no_such_package.CAME", "is it installed?"),
    ],
)
def test_bad_names(name, said):
    with pytest.raises(UserError) as caught:
        optimizer.resolve(name)
    assert said in str(caught.value)


def test_what_metadata_records():
    described, made = optimizer.make("AdamW", ["betas=(0.9,0.95)", "eps=1e-6"], groups(), 1e-4)
    assert described == "torch.optim.adamw.AdamW(betas=(0.9, 0.95),eps=1e-06)"
    assert made.param_groups[0]["betas"] == (0.9, 0.95)
    assert made.param_groups[0]["lr"] == 1e-3


def test_an_unknown_argument_is_named():
    with pytest.raises(UserError, match=r"weight_decy.*did you mean weight_decay\?"):
        optimizer.make("AdamW", ["weight_decy=1"], groups(), 1e-4)


def test_a_bad_value_is_named():
    with pytest.raises(UserError, match="Invalid beta"):
        optimizer.make("AdamW", ["betas=(2.0,0.9)"], groups(), 1e-4)


def test_only_torch_optimizers():
    with pytest.raises(UserError, match=r"not a torch\.optim\.Optimizer"):
        optimizer.make("tests_fake.Fake", [], groups(), 1e-4)


@pytest.fixture(autouse=True)
def _fake_module(monkeypatch):
    import sys
    import types

    module = types.ModuleType("tests_fake")
    module.Fake = type("Fake", (), {"__init__": lambda self, params, lr: None})
    monkeypatch.setitem(sys.modules, "tests_fake", module)
