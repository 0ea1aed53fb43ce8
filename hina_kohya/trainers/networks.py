"""`create_network` of any network module: our options out of its arguments, our param groups out of its network."""

import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from hina_kohya.parameters import roles
from hina_kohya.trainers import averages, calibrating, guard, tags
from hina_kohya.trainers.errors import PluginError, UserError
from hina_kohya.trainers.groups import named_groups, regroup
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.network_args import NetworkOptions, take
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import GroupsCall

CREATORS = (
    "create_network",
    "create_network_from_weights",
    "create_arch_network",
    "create_arch_network_from_weights",
)
_METHODS = ("prepare_optimizer_params", "prepare_optimizer_params_with_multiple_te_lrs")
_CALLS = (*SD_SCRIPTS.groups_calls, *MUSUBI.groups_calls)
_CREATING: contextvars.ContextVar[bool] = contextvars.ContextVar("hina_kohya_creating", default=False)


def create(wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of a creator of networks, which returns the network or (network, weights)."""
    if _CREATING.get():  # of one creator by another, which has taken the options
        return wrapped(*args, **kwargs)
    options, rest = take(kwargs)
    token = _CREATING.set(True)
    try:
        result = wrapped(*args, **rest)
    finally:
        _CREATING.reset(token)
    for network in networks_of(result):
        adopt(network, options)
    return result


def networks_of(result: Any) -> Iterator[nn.Module]:
    """The network of what a creator returned."""
    network = result[0] if isinstance(result, tuple) else result
    if isinstance(network, nn.Module):
        yield network


def adopt(network: Any, options: NetworkOptions) -> None:
    """Regroups what this network object hands to the optimizer. A second time changes nothing."""
    if hasattr(network, "hina_options"):
        return
    network.hina_options = options
    if options.ema is not None:
        averages.keep(network, options.ema)
    if options.calibrate_steps:
        calibrating.keep(network, options.calibrate_steps)
    for name in _METHODS:
        if hasattr(network, name):
            setattr(network, name, _preparing(getattr(network, name), network, options))


def _preparing(prepare: Callable[..., Any], network: Any, options: NetworkOptions) -> Callable[..., Any]:
    @functools.wraps(prepare)
    def prepare_by_role(*args: Any, **kwargs: Any) -> Any:
        call = _call(args, kwargs, type(network).__name__)
        result = prepare(*args, **kwargs)  # its own TypeError is sd-scripts' signal to try the old signature
        default_lr = None if call.default_lr is None else {**dict(enumerate(args)), **kwargs}[call.default_lr]
        try:
            groups, descriptions = _by_role(result, network, options, default_lr)
        except TypeError as error:
            raise PluginError(
                f"hina-kohya could not read the param groups of {type(network).__name__}: {error}"
            ) from error
        guard.handed(network, groups)
        if call.pair:
            return groups, descriptions or _numbered(len(groups))
        return groups if descriptions is None or call.pair is False else (groups, descriptions)

    return prepare_by_role


def _call(args: tuple[Any, ...], kwargs: Mapping[str, Any], network: str) -> GroupsCall:
    """Which of the trainers' calls this is. Raises UserError for one that we do not know how to answer."""
    for call in _CALLS:
        if (len(args), kwargs.keys()) == (call.positional, call.keywords):
            return call
    words = ", ".join([*map(repr, args), *(f"{name}={value!r}" for name, value in kwargs.items())])
    raise UserError(
        f"{guard.caller()} asks {network} for its param groups by prepare_optimizer_params({words}), which hina-kohya "
        "does not know how to answer; report this trainer, and train with --network_module lycoris.kohya until then"
    )


def _by_role(result: Any, network: Any, options: NetworkOptions, default_lr: Any) -> Any:
    groups, descriptions = _read(result, type(network).__name__)
    named_params = list(network.named_parameters())
    _tag(groups, named_params, network)
    return regroup(groups, descriptions, named_params, options, default_lr)


def _numbered(count: int) -> list[str]:
    return ["unet"] if count == 1 else [f"unet {number}" for number in range(1, count + 1)]


def _read(result: Any, network: str) -> tuple[list[Mapping[str, Any]], list[str] | None]:
    """(param groups, descriptions or None). Raises UserError for a shape that nobody has seen."""
    pair = result if isinstance(result, tuple) else (result, None)
    if len(pair) == 2 and _are_groups(pair[0]) and _are_words(pair[1]):
        groups, descriptions = list(pair[0]), None if pair[1] is None else list(pair[1])
        if descriptions is None or len(descriptions) == len(groups):
            return groups, descriptions
    raise UserError(
        f"{network} returned {_shape(result)} for its param groups, and not a list of param groups, alone or with "
        "one description each; hina-kohya cannot name them: train with that network module itself, and report it"
    )


def _are_groups(value: Any) -> bool:
    return isinstance(value, Iterable) and all(isinstance(each, Mapping) and "params" in each for each in value)


def _are_words(value: Any) -> bool:
    return value is None or (isinstance(value, Iterable) and all(isinstance(each, str) for each in value))


def _shape(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {', '.join(type(each).__name__ for each in value[:4]) or 'nothing'}"
    return type(value).__name__


def _tag(groups: Any, named_params: Any, network: nn.Module) -> None:
    pairs = [pair for group in named_groups(groups, named_params) or [] for pair in group]
    members = roles.resolve([name for name, _ in pairs], [tuple(param.shape) for _, param in pairs])
    tags.attach(members, [param for _, param in pairs])
    tags.attach_scales(network)
