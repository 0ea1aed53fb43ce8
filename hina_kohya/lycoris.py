"""`--network_module hina_kohya.lycoris`: LyCORIS, with names, roles and the options of `trainers.network_args`.

Importing this module installs the hooks, so short optimizer names work, too.
"""

from typing import Any

from hina_kohya.trainers import hooks

_module = hooks.network_module("lycoris.kohya")

create_network = _module.create_network
create_network_from_weights = _module.create_network_from_weights


def create_arch_network_from_weights(
    multiplier: float, weights_sd: Any, text_encoders: Any = None, unet: Any = None, **kwargs: Any
) -> Any:
    """The network of a file, as musubi-tuner asks for it with --base_weights."""
    return create_network_from_weights(multiplier, "", None, text_encoders, unet, weights_sd=weights_sd, **kwargs)[0]
