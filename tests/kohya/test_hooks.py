"""Hooks in every order of imports, wherever a name for a function is, taken off again; network modules that install."""

import importlib
import sys
import types

import pytest

from hina_kohya.trainers import hooks
from hina_kohya.trainers.bindings import Hook
from hina_kohya.trainers.errors import UserError

METHOD = "    def get_optimizer(self, args, trainable_params):\n        return 'theirs'\n"
FILES = {
    "old": {"library/train_util.py": "def get_optimizer(args, trainable_params):\n    return 'theirs'\n"},
    "new": {
        "library/optimizer.py": "def get_optimizer(args, trainable_params):\n    return 'theirs'\n",
        "library/train_util.py": "from library.optimizer import get_optimizer\n",
    },
    "musubi": {
        "musubi_tuner/__init__.py": "",
        "musubi_tuner/training/__init__.py": "",
        "musubi_tuner/training/trainer_base.py": f"class NetworkTrainer:\n{METHOD}",
        "musubi_tuner/hv_train_network.py": "from musubi_tuner.training.trainer_base import NetworkTrainer\n",
        "musubi_tuner/wan_train_network.py": "from musubi_tuner.hv_train_network import NetworkTrainer\n\n"
        "class WanNetworkTrainer(NetworkTrainer):\n    pass\n",
        "musubi_tuner/networks/__init__.py": "",
        "musubi_tuner/networks/lora_wan.py": "def create_arch_network(*args, **kwargs):\n    return None\n",
    },
}
NETWORKS = {
    f"networks/{name}.py": "def create_network(*args, **kwargs):\n    return None\n"
    for name in ("lora", "lora_of_next_year")
}
TOPS = ("library", "networks", "musubi_tuner", "elsewhere")


@pytest.fixture(params=["old", "new"])
def layout(request):
    return request.param


@pytest.fixture(autouse=True)
def checkout(request, tmp_path, monkeypatch):
    """A trainer's packages: importable only from here, forgotten afterwards."""
    kind = request.getfixturevalue("layout") if "layout" in request.fixturenames else "new"
    for path, text in (FILES[kind] | FILES["musubi"] | NETWORKS).items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "library" / "__init__.py").touch()
    (tmp_path / "elsewhere.py").write_text("from library.train_util import get_optimizer as make\n")
    monkeypatch.syspath_prepend(tmp_path)
    hooks.uninstall()
    yield tmp_path
    hooks.uninstall()
    for name in [name for name in sys.modules if name.partition(".")[0] in TOPS]:
        del sys.modules[name]


def hooked(module, name="get_optimizer"):
    return type(vars(importlib.import_module(module))[name]) is Hook


@pytest.mark.slow
def test_before_and_after_the_import(layout):
    hooks.install()
    assert hooks.active()
    assert hooked("library.train_util")
    hooks.uninstall()
    assert not hooks.active()
    assert not hooked("library.train_util")
    hooks.install()
    assert hooked("library.train_util")


@pytest.mark.parametrize("first", ["library.train_util", "elsewhere", None])
def test_every_name_of_the_function_in_every_order(layout, first):
    if first is not None:
        importlib.import_module(first)
    hooks.install()
    homes = ["library.train_util"] + ["library.optimizer"] * (layout == "new")
    hook = importlib.import_module("library.train_util").get_optimizer
    for module, name in [*((home, "get_optimizer") for home in homes), ("elsewhere", "make")]:
        assert vars(importlib.import_module(module))[name] is hook
    assert not hasattr(hook.__wrapped__, "__wrapped__")
    hooks.uninstall()
    for module, name in [*((home, "get_optimizer") for home in homes), ("elsewhere", "make")]:
        assert vars(importlib.import_module(module))[name] is hook.__wrapped__


@pytest.mark.slow
def test_a_name_taken_after_the_first_hooks(layout):
    """As a trainer does that imports within a function."""
    hooks.install()
    importlib.import_module("library.train_util")
    hooks.uninstall()
    importlib.import_module("elsewhere")
    hooks.install()
    assert hooked("elsewhere", "make")


def test_not_after_uninstalling(layout):
    hooks.install()
    hooks.uninstall()
    assert not hooked("library.train_util")
    assert importlib.import_module("library.train_util").get_optimizer(None, None) == "theirs"


def test_installing_twice_wraps_once(layout):
    hooks.install()
    module = importlib.import_module("library.train_util")
    first = module.get_optimizer
    hooks.install()
    assert module.get_optimizer is first
    assert not hasattr(first.__wrapped__, "__wrapped__")


def test_inert_under_somebody_elses_wrapper(layout):
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


@pytest.mark.parametrize("imported_first", [True, False])
def test_a_method_and_all_its_heirs(imported_first):
    if imported_first:
        importlib.import_module("musubi_tuner.wan_train_network")
    hooks.install()
    base = importlib.import_module("musubi_tuner.training.trainer_base").NetworkTrainer
    heir = importlib.import_module("musubi_tuner.wan_train_network").WanNetworkTrainer
    assert type(vars(base)["get_optimizer"]) is Hook
    assert "get_optimizer" not in vars(heir)
    assert callable(heir().get_optimizer)
    hooks.uninstall()
    assert type(vars(base)["get_optimizer"]) is types.FunctionType
    assert heir().get_optimizer(None, None) == "theirs"


@pytest.mark.slow
def test_a_class_of_the_script_itself(monkeypatch):
    """hv_train.py is never imported: its class is in __main__, and defined after the hooks were installed."""
    hooks.install()
    main = types.ModuleType("__main__")
    main.__file__ = "/musubi/src/musubi_tuner/hv_train.py"
    exec(
        "class FineTuningTrainer:\n    def get_optimizer(self, args, trainable_params):\n        return 'theirs'\n",
        vars(main),
    )
    monkeypatch.setitem(sys.modules, "__main__", main)
    importlib.import_module("networks.lora").create_network()
    assert type(vars(main.FineTuningTrainer)["get_optimizer"]) is Hook
    hooks.uninstall()
    assert main.FineTuningTrainer().get_optimizer(None, None) == "theirs"


@pytest.mark.slow
def test_networks_and_lycoris():
    hooks.install()
    assert hooked("networks.lora", "create_network")
    assert hooked("networks.lora_of_next_year", "create_network")
    assert hooked("musubi_tuner.networks.lora_wan", "create_arch_network")
    assert hooked("lycoris.kohya", "create_network")
    assert hooked("lycoris.kohya", "create_network_from_weights")
    hooks.uninstall()
    assert not hooked("lycoris.kohya", "create_network")


def test_networks_by_the_short_name_that_musubi_tuner_makes_possible(checkout, monkeypatch):
    hooks.install()
    monkeypatch.syspath_prepend(checkout / "musubi_tuner")
    assert hooked("networks.lora_wan", "create_arch_network")


@pytest.mark.slow
def test_any_network_by_name(checkout):
    from hina_kohya import network

    (checkout / "of_ones_own.py").write_text("def create_network(*args, **kwargs):\n    return None\n")
    assert network.create_network(1.0, inner="of_ones_own") is None
    assert hooked("of_ones_own", "create_network")
    assert network.create_arch_network(1.0, inner="musubi_tuner.networks.lora_wan") is None
    assert network.create_arch_network(1.0, inner="of_ones_own") is None
    for kwargs, said in (
        ({}, "needs network_args inner"),
        ({"inner": "networks.lore"}, "cannot be imported"),
        ({"inner": "hina_kohya.network"}, "this module itself"),
    ):
        for create in (network.create_network, network.create_arch_network):
            with pytest.raises(UserError, match=said):
                create(1.0, **kwargs)
    with pytest.raises(UserError, match="--base_weights"):
        network.create_network_from_weights(1.0, "file", None, None, None, for_inference=True)
