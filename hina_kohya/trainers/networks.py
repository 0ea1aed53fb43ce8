"""`create_network` of any network module: our options out of its arguments, our param groups out of its network."""

import functools
from collections.abc import Callable
from typing import Any

from hina_kohya.core import roles
from hina_kohya.trainers import tags
from hina_kohya.trainers.errors import PluginError
from hina_kohya.trainers.groups import named_groups, regroup
from hina_kohya.trainers.network_args import NetworkOptions, take

CREATORS = ("create_network", "create_network_from_weights")
_METHODS = ("prepare_optimizer_params", "prepare_optimizer_params_with_multiple_te_lrs")
_FULL_CALL = 3  # text encoder lr, U-Net lr, default lr


def create(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of `create_network` and `create_network_from_weights`, which returns (network, weights)."""
    options, rest = take(kwargs)
    made = wrapped(*args, **rest)
    adopt(made[0] if isinstance(made, tuple) else made, options)
    return made


def adopt(network: Any, options: NetworkOptions) -> None:
    """Regroups what this network object hands to the optimizer. A second time changes nothing."""
    if network is None or hasattr(network, "hina_options"):
        return
    network.hina_options = options
    for name in _METHODS:
        if hasattr(network, name):
            setattr(network, name, _preparing(getattr(network, name), network, options))


def _preparing(prepare: Callable[..., Any], network: Any, options: NetworkOptions) -> Callable[..., Any]:
    @functools.wraps(prepare)
    def prepare_by_role(*args: Any, **kwargs: Any) -> Any:
        made = prepare(*args, **kwargs)  # its own TypeError is sd-scripts' signal to try the old signature
        try:
            return _by_role(made, network, options, [*args, *kwargs.values()])
        except TypeError as error:
            raise PluginError(
                f"hina-kohya could not read the param groups of {type(network).__name__}: {error}"
            ) from error

    return prepare_by_role


def _by_role(made: Any, network: Any, options: NetworkOptions, call: list[Any]) -> Any:
    groups, descriptions = made if isinstance(made, tuple) else (made, None)
    default_lr = call[2] if len(call) >= _FULL_CALL else None
    named = list(network.named_parameters())
    _tag(groups, named)
    groups, descriptions = regroup(groups, descriptions, named, options, default_lr)
    # The old signature's caller takes whatever is returned for the groups.
    return groups if descriptions is None or len(call) < _FULL_CALL else (groups, descriptions)


def _tag(groups: Any, named: Any) -> None:
    pairs = [pair for group in named_groups(groups, named) or [] for pair in group]
    members = roles.resolve([name for name, _ in pairs], [tuple(param.shape) for _, param in pairs])
    tags.attach(members, [param for _, param in pairs])
