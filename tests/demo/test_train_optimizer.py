"""--optimizer_type and --optimizer_args: sd-scripts' meaning, better errors."""

import pytest
import torch

from hina_kohya.demo import optimizer
from hina_kohya.demo.errors import UserError


def groups():
    return [{"params": {"w": torch.nn.Parameter(torch.zeros(2, 2))}.values(), "lr": 1e-3}]


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


def test_a_value_out_of_bounds_has_no_advice_about_names():
    with pytest.raises(UserError, match=r"outside \[-4, 4\]; the default is 0.0$"):
        optimizer.make(
            "AdaptiveHinaAdamW", ["adaptation_strength=9"], [{"params": [torch.nn.Parameter(torch.ones(2))]}], 1e-3
        )
