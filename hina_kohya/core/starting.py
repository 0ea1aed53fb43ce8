"""Where parameters started: at zero, which nobody has to keep, or at weights of which a technique keeps a copy."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core import registry
from hina_kohya.core.technique import Slot, Technique
from hina_kohya.parameters.roles import Member


def with_starts(
    members: Sequence[Member], groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]
) -> list[Member]:
    """Each member with `starts_at_zero`, if one of the techniques asks for it. Waits, once, for each device.

    Of a parameter that has been stepped, the state tells: what did not start at zero has a copy of its start there.
    """
    names = {name for group in groups for name in group["techniques"]}
    readers = [cls for name, cls in registry.techniques().items() if name in names and cls.reads_start]
    if not readers:
        return list(members)
    params = [param for group in groups for param in group["params"]]
    zero = _are_zero(members, params)
    starts = [_start(state.get(param, {}), readers) for param in params]
    return [
        dc.replace(member, starts_at_zero=is_zero if start is None else start)
        for member, is_zero, start in zip(members, zero, starts, strict=True)
    ]


def _start(known: Mapping[str, Any], readers: Sequence[type[Technique]]) -> bool | None:
    """What the state says; None where no technique has kept anything of the parameter's start."""
    own = [technique for technique in readers if any(key.startswith(f"{technique.name}.") for key in known)]
    anchors = [f"{t.name}.{slot}" for t in own for slot, kind in t.slots.items() if kind is Slot.ANCHOR]
    return not any(anchor in known for anchor in anchors) if own else None


def _are_zero(members: Sequence[Member], params: Sequence[Tensor]) -> list[bool]:
    """By their values; those without any, in forecasts, are taken to start as their role does."""
    result = [member.role.zero_init for member in members]
    for device in {param.device for param in params} - {torch.device("meta")}:
        places = [place for place, param in enumerate(params) if param.device == device]
        moved = torch.stack([params[place].detach().any() for place in places])
        for place, is_moved in zip(places, moved.tolist(), strict=True):
            result[place] = not is_moved
    return result
