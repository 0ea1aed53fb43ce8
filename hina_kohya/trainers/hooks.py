"""Hooks on the trainers and on LyCORIS: in any order of imports, wherever they hold a function, and removable.

Nothing of theirs is imported here. `library` and `networks` are generic names: a module of such a name without the
function we wrap is left alone.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import wrapt

from hina_kohya.trainers import (
    bindings,
    guard,
    half_precision,
    held_out,
    lycoris_presets,
    networks,
    optimizers,
    own_validation,
    scalars,
    schedulers,
    step_logs,
)
from hina_kohya.trainers.bindings import Wrapper
from hina_kohya.trainers.checkouts import TRAINERS
from hina_kohya.trainers.networks import CREATORS

LYCORIS = "lycoris.kohya"


class _Hooks:
    active = False
    waiting: set[str] = set()  # wrapt calls a hook once and forgets it
    observers: list[Callable[[Any], object]] = []
    networks: set[str] = {LYCORIS}  # modules that make networks, by every name that was asked for or can be imported


def active() -> bool:
    return _Hooks.active


def install() -> None:
    """Now and for every later import. Installing twice is installing once."""
    _Hooks.active = True
    _Hooks.networks |= set(_network_modules())
    _bind()
    for path in _functions():
        name = path.partition(":")[0]
        if name not in sys.modules and name not in _Hooks.waiting:
            _Hooks.waiting.add(name)
            wrapt.register_post_import_hook(_imported, name)


def observe(observer: Callable[[Any], object]) -> None:
    """From now on called with each network that is created, before it is put onto the models; until `uninstall`."""
    _Hooks.observers.append(observer)


def uninstall() -> None:
    """Gives every module its own functions back. Networks that exist already keep their groups."""
    _Hooks.active = False
    _Hooks.observers.clear()
    guard.stand_down()
    bindings.release()
    scalars.release()
    held_out.release()
    own_validation.release()


def network_module(name: str) -> ModuleType:
    """A network module by name, known or not, with its creators wrapped."""
    install()
    module = importlib.import_module(name)
    _Hooks.networks.add(name)
    _bind()
    return module


def _imported(module: ModuleType) -> None:
    _Hooks.waiting.discard(module.__name__)
    if _Hooks.active:
        _bind()


def _bind() -> None:
    bindings.bind(_functions(), active)


def _functions() -> dict[str, Wrapper]:
    """Every function that we wrap where it exists."""
    functions: dict[str, Wrapper] = {}
    for trainer in TRAINERS:
        functions |= dict.fromkeys(trainer.get_optimizer, functools.partial(optimizers.get_optimizer, trainer))
        functions |= dict.fromkeys(trainer.get_scheduler, schedulers.get_scheduler)
        functions |= dict.fromkeys(trainer.step_logs, step_logs.step_logs)
        functions |= dict.fromkeys(trainer.batch_loss, held_out.batch_loss)
        functions |= dict.fromkeys(trainer.get_modes, held_out.get_modes)
        functions |= dict.fromkeys(trainer.after_step, own_validation.after_step)
    for name in _Hooks.networks:
        wrapper = _create_lycoris if name == LYCORIS else _create
        functions |= {f"{name}:{creator}": wrapper for creator in CREATORS}
    return functions


def _create(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _bind()  # the script has by now defined and imported what it will call
    result = networks.create(wrapped, instance, args, kwargs)
    for network in networks.networks_of(result):
        guard.expect(network, {name for trainer in TRAINERS for name in trainer.modules})
        for observer in _Hooks.observers:
            observer(network)
    return result


def _create_lycoris(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Our presets and `algo=adlrns`, too; by name, since the network of ADLRNS itself comes in through these hooks."""
    if "preset" in kwargs:
        kwargs = {**kwargs, "preset": lycoris_presets.path(kwargs["preset"])}
    adlrns = importlib.import_module("hina_kohya.adlrns.adapter.network")
    result = _create(functools.partial(adlrns.create, wrapped), instance, args, kwargs)
    for network in networks.networks_of(result):
        half_precision.admit(network)
    return result


def _network_modules() -> Iterator[str]:
    """The modules of the trainers' network packages that can be imported here, read off the folders."""
    for trainer in TRAINERS:
        top, *folders = trainer.network_package.split(".")
        spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
        for root in spec.submodule_search_locations or () if spec else ():
            for file in Path(root, *folders).glob("*.py"):
                yield f"{trainer.network_package}.{file.stem}"
                # musubi-tuner puts its own folder on the path, and then imports by the short name
                yield f"{'.'.join(folders) or top}.{file.stem}"
