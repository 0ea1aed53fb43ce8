"""Hooks in every order of imports, taken off again, and the network modules that install them."""

import importlib
import sys
import types

import pytest

from hina_kohya.trainers import hooks
from hina_kohya.trainers.errors import UserError


@pytest.fixture(autouse=True)
def checkout(tmp_path, monkeypatch):
    """`library` and `networks` as sd-scripts has them: importable only from here, forgotten afterwards."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "__init__.py").touch()
    (tmp_path / "library" / "train_util.py").write_text(
        "def get_optimizer(args, trainable_params):\n    return 'theirs'\n"
    )
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "lora.py").write_text("def create_network(*args, **kwargs):\n    return None\n")
    (tmp_path / "networks" / "own.py").write_text("def create_network(*args, **kwargs):\n    return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    hooks.uninstall()
    yield
    hooks.uninstall()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("library", "networks"):
            del sys.modules[name]
    for name in ("library", "networks", "library.train_util", "networks.lora", "networks.own"):
        sys.modules.pop(name, None)


def hooked(module, name="get_optimizer"):
    return hasattr(vars(importlib.import_module(module))[name], "__wrapped__")


def test_before_and_after_the_import():
    hooks.install()
    assert hooks.active()
    assert hooked("library.train_util")
    hooks.uninstall()
    assert not hooks.active()
    assert not hooked("library.train_util")
    hooks.install()
    assert hooked("library.train_util")


def test_import_first():
    importlib.import_module("library.train_util")
    hooks.install()
    assert hooked("library.train_util")


def test_not_after_uninstalling():
    hooks.install()
    hooks.uninstall()
    assert not hooked("library.train_util")
    assert importlib.import_module("library.train_util").get_optimizer(None, None) == "theirs"


def test_installing_twice_wraps_once():
    hooks.install()
    module = importlib.import_module("library.train_util")
    first = module.get_optimizer
    hooks.install()
    assert module.get_optimizer is first
    assert not hasattr(first.__wrapped__, "__wrapped__")


def test_inert_under_somebody_elses_wrapper():
    hooks.install()
    module = importlib.import_module("library.train_util")
    ours = module.get_optimizer

    def theirs(args, trainable_params):
        return ours(args, trainable_params)

    module.get_optimizer = theirs
    hooks.uninstall()
    assert module.get_optimizer(types.SimpleNamespace(optimizer_type="HinaAdamW"), []) == "theirs"


def test_a_library_of_somebody_else_is_left_alone(monkeypatch):
    other = types.ModuleType("library.train_util")
    monkeypatch.setitem(sys.modules, "library.train_util", other)
    hooks.install()
    assert not hasattr(other, "get_optimizer")


def test_networks_and_lycoris():
    hooks.install()
    assert hooked("networks.lora", "create_network")
    assert hooked("lycoris.kohya", "create_network")
    assert hooked("lycoris.kohya", "create_network_from_weights")
    hooks.uninstall()
    assert not hooked("lycoris.kohya", "create_network")


def test_any_network_by_name():
    from hina_kohya import network

    assert network.create_network(1.0, inner="networks.own") is None
    assert hooked("networks.own", "create_network")
    for kwargs, said in (
        ({}, "needs network_args inner"),
        ({"inner": "networks.lore"}, "cannot be imported"),
        ({"inner": "hina_kohya.network"}, "this module itself"),
    ):
        with pytest.raises(UserError, match=said):
            network.create_network(1.0, **kwargs)
    with pytest.raises(UserError, match="--base_weights"):
        network.create_network_from_weights(1.0, "file", None, None, None, for_inference=True)
