"""`--network_module hina_kohya.adlrns`: LyCORIS with algo=adlrns, through the hooks on the trainers."""

from collections.abc import Callable
from typing import Any

from hina_kohya.adlrns.adapter.registration import NAME
from hina_kohya.trainers import hooks


def create_network(*args: Any, **kwargs: Any) -> Any:
    """As `lycoris.kohya.create_network` with algo=adlrns; importing this installs the hooks, as hina_kohya.lycoris."""
    return _creator("create_network")(*args, **_with_algo(kwargs))


def create_network_from_weights(*args: Any, **kwargs: Any) -> Any:
    """(network, weights) of a file, whose number of states and directions stays."""
    return _creator("create_network_from_weights")(*args, **_with_algo(kwargs))


def create_arch_network_from_weights(
    multiplier: float, weights_sd: Any, text_encoders: Any = None, unet: Any = None, **kwargs: Any
) -> Any:
    """The network of a file, as musubi-tuner asks for it with --base_weights."""
    return create_network_from_weights(multiplier, "", None, text_encoders, unet, weights_sd=weights_sd, **kwargs)[0]


def _creator(name: str) -> Callable[..., Any]:
    return getattr(hooks.network_module("lycoris.kohya"), name)


def _with_algo(kwargs: dict[str, Any]) -> dict[str, Any]:
    algo = kwargs.get("algo") or NAME
    if str(algo).lower() != NAME:
        raise ValueError(f"algo = {algo!r} is not ADLRNS; remove it, or write network_module=hina_kohya.lycoris")
    return {**kwargs, "algo": NAME}
