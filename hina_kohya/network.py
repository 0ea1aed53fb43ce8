"""`--network_module hina_kohya.network --network_args inner=networks.lora`: any network module, with names and roles.

Importing this module installs the hooks, so short optimizer names work, too.
"""

from typing import Any

from hina_kohya.trainers import hooks
from hina_kohya.trainers.errors import UserError

hooks.install()


def create_network(*args: Any, inner: str | None = None, **kwargs: Any) -> Any:
    """Network of the module `inner`; everything else is passed on."""
    return _module(inner).create_network(*args, **kwargs)


def create_arch_network(*args: Any, inner: str | None = None, **kwargs: Any) -> Any:
    """The same for musubi-tuner, whose networks have one creator for each architecture."""
    module = _module(inner)
    creator = "create_arch_network" if hasattr(module, "create_arch_network") else "create_network"
    return getattr(module, creator)(*args, **kwargs)


def create_arch_network_from_weights(*args: Any, inner: str | None = None, **kwargs: Any) -> Any:
    """Network of a file for the module `inner`, for musubi-tuner."""
    return _module(inner).create_arch_network_from_weights(*args, **kwargs)


def create_network_from_weights(*args: Any, inner: str | None = None, **kwargs: Any) -> Any:
    """Network and weights of the module `inner`."""
    return _module(inner).create_network_from_weights(*args, **kwargs)


def _module(inner: str | None) -> Any:
    if inner is None:
        raise UserError(
            "hina_kohya.network needs network_args inner=networks.lora (or another network module). With "
            "--base_weights trainers pass none: start with `hina-kohya launch` and --network_module networks.lora"
        )
    if inner == __name__:
        raise UserError(f"network_args: inner={inner} is this module itself; write inner=networks.lora")
    try:
        return hooks.network_module(inner)
    except ModuleNotFoundError as error:
        raise UserError(f"network_args: inner={inner} cannot be imported ({error}); is it spelt right?") from error
