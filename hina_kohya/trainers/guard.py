"""Stops a run whose optimizer did not come through the hooks, before its first step.

A hook that is installed and never called is worse than none: short names, arguments and decay by role would silently be
the trainer's own. So whoever makes an optimizer over parameters of one of our networks has to come through `passing`,
and the network has to have been asked for its groups.
"""

import contextlib
import contextvars
import dataclasses as dc
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
import wrapt
from torch import nn

from hina_kohya.trainers.errors import UserError

_OPTIONS = ("--optimizer_type", "--network_module", "--config_file")
_PASSING: contextvars.ContextVar[bool] = contextvars.ContextVar("hina_kohya_passing", default=False)
_PACKAGE = Path(__file__).parents[1]


@dc.dataclass(frozen=True)
class _Handed:
    """One param group as a trainer got it: its parameters by identity, and whether they have names."""

    params: Set[int]
    has_names: bool


class _Guard:
    waiting: WeakSet[nn.Module] = WeakSet()  # networks whose optimizer has not been made
    groups: WeakKeyDictionary[nn.Module, list[_Handed]] = WeakKeyDictionary()  # of networks that were asked for them
    trainers: frozenset[str] = frozenset()  # modules by which a running trainer is known


class _Constructor(wrapt.FunctionWrapper):
    """Around `torch.optim.Optimizer.__init__`, as long as a network waits."""


def expect(network: nn.Module, trainers: Iterable[str]) -> None:
    """From now on an optimizer over this network's parameters has to come through `passing`."""
    _Guard.trainers = frozenset(trainers)
    _Guard.waiting.add(network)
    constructor = vars(torch.optim.Optimizer)["__init__"]
    if type(constructor) is not _Constructor:
        torch.optim.Optimizer.__init__ = _Constructor(constructor, _construct)


def handed(network: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
    """The trainer has these groups now; lists of tensors, or of (name, tensor)."""
    _Guard.groups[network] = [
        _Handed(
            frozenset(id(item[1] if isinstance(item, tuple) else item) for item in group["params"]),
            any(isinstance(item, tuple) for item in group["params"]),
        )
        for group in groups
    ]


def stand_down() -> None:
    """Expects nothing any more, and leaves torch as it was."""
    _Guard.waiting.clear()
    constructor = vars(torch.optim.Optimizer)["__init__"]
    if type(constructor) is _Constructor:
        torch.optim.Optimizer.__init__ = constructor.__wrapped__


@contextlib.contextmanager
def passing() -> Iterator[None]:
    """An optimizer that is made within is one of ours, or of the trainer's own function under our hook."""
    token = _PASSING.set(True)
    try:
        yield
    finally:
        _PASSING.reset(token)
    stand_down()


def caller() -> str:
    """The trainer's function that called us, as `file: function (called by file: function)`."""
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe(1)) if _is_the_trainers(frame)]
    places = [f"{frame.f_code.co_filename}: {frame.f_code.co_name}" for frame in frames[:2]]
    return places[0] + (f" (called by {places[1]})" if len(places) > 1 else "") if places else "an unknown place"


def _is_the_trainers(frame: FrameType) -> bool:
    if frame.f_code.co_name == "<module>" or isinstance(frame.f_locals.get("self"), torch.optim.Optimizer):
        return False
    file = Path(frame.f_code.co_filename)
    if file.name.startswith("<frozen") or file.name == "runpy.py":
        return False
    return "site-packages" not in file.parts and _PACKAGE not in file.parents


def _construct(wrapped: Any, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    for network in list(_Guard.waiting):
        own = set(map(id, network.parameters()))
        groups = [
            (own.intersection(map(id, group["params"])), "param_names" in group) for group in optimizer.param_groups
        ]
        groups = [group for group in groups if group[0]]
        if not groups or not _in_a_trainer():
            continue
        name = type(network).__name__
        if not _PASSING.get():
            stand_down()
            raise UserError(
                f"{type(optimizer).__name__} was made by {caller()}, where hina-kohya has no hook: short names, "
                "optimizer_args and options of param groups would be ignored. Report this trainer, and train with "
                "--network_module lycoris.kohya and a dotted optimizer_type, such as hina_kohya.HinaAdamW, until then"
            )
        records = _Guard.groups.get(network, [])
        if not all(
            any(params <= group.params and has_names >= group.has_names for group in records)
            for params, has_names in groups
        ):
            stand_down()
            raise UserError(
                f"{caller()} took the parameters of {name} otherwise than by prepare_optimizer_params, so that names "
                "and options of param groups are lost; report this trainer, and train with --network_module "
                "lycoris.kohya until then"
            )


def _in_a_trainer() -> bool:
    """Not in a notebook or a script of one's own, where whoever makes an optimizer sees what he gives it."""
    return any(word.partition("=")[0] in _OPTIONS for word in sys.argv) or not _Guard.trainers.isdisjoint(sys.modules)
