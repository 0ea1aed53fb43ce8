"""Post-import hooks on sd-scripts and LyCORIS: in any order of imports, and removable.

Nothing of theirs is imported here. `library.train_util` and `networks.*` are generic names: a module of that name
without the function we wrap is left alone.
"""

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

import wrapt

from hina_kohya.trainers.networks import CREATORS, create
from hina_kohya.trainers.optimizers import get_optimizer

TRAIN_UTIL = "library.train_util"
NETWORKS = (
    "lycoris.kohya",
    *(f"networks.{name}" for name in (
        "lora", "lora_fa", "lora_flux", "lora_sd3", "lora_lumina", "lora_anima", "lora_hunyuan_image",
        "dylora", "oft", "oft_flux", "loha", "lokr",
    )),
)  # fmt: skip


def _create_lycoris(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`algo=adlrns`, too; by name, since the network of ADLRNS itself comes in through these hooks."""
    adlrns = importlib.import_module("hina_kohya.adlrns.network")
    return create(functools.partial(adlrns.create, wrapped), instance, args, kwargs)


_FUNCTIONS = {
    TRAIN_UTIL: {"get_optimizer": get_optimizer},
    **{name: dict.fromkeys(CREATORS, create) for name in NETWORKS},
    "lycoris.kohya": dict.fromkeys(CREATORS, _create_lycoris),
}


class _Hooks:
    active = False
    waiting: set[str] = set()  # wrapt calls a hook once and forgets it


class _Hook(wrapt.FunctionWrapper):
    """Our wrapper; inert where it could not be taken off because somebody else has wrapped it."""

    def __init__(self, wrapped: Any, wrapper: Any):
        super().__init__(wrapped, wrapper, enabled=active)


def active() -> bool:
    return _Hooks.active


def install() -> None:
    """Now and for every later import. Installing twice is installing once."""
    _Hooks.active = True
    for name in _FUNCTIONS:
        if name in sys.modules:
            _hook(sys.modules[name])
        elif name not in _Hooks.waiting:
            _Hooks.waiting.add(name)
            wrapt.register_post_import_hook(_hook, name)


def uninstall() -> None:
    """Gives every module its own functions back. Networks that exist already keep their groups."""
    _Hooks.active = False
    for module in list(sys.modules.values()):
        for name, thing in list(getattr(module, "__dict__", {}).items()):
            if type(thing) is _Hook:
                setattr(module, name, thing.__wrapped__)


def network_module(name: str) -> ModuleType:
    """A network module by name, known or not, with its creators wrapped."""
    install()
    module = importlib.import_module(name)
    _wrap(module, dict.fromkeys(CREATORS, create))
    return module


def _hook(module: ModuleType) -> None:
    _Hooks.waiting.discard(module.__name__)
    if _Hooks.active:
        _wrap(module, _FUNCTIONS[module.__name__])


def _wrap(module: ModuleType, functions: dict[str, Any]) -> None:
    for name, wrapper in functions.items():
        function = getattr(module, name, None)
        if function is not None and type(function) is not _Hook:
            setattr(module, name, _Hook(function, wrapper))
