"""The parameters of an optimizer as members: names from the param groups, roles from names, decay as the user asks."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

from hina_kohya.parameters import roles
from hina_kohya.parameters.role_table import ROLES
from hina_kohya.parameters.roles import Member
from hina_kohya.text import did_you_mean

Groups = Sequence[Mapping[str, Any]]
SCALE = "_lora_scale"  # attribute of a parameter: alpha / rank of its module, set by the hooks on the trainers
ROLE_NAMES = sorted({role.name for role in ROLES})


def members_of(groups: Groups, decay_roles: Sequence[str], scale: float | None = None) -> list[Member]:
    """One member per parameter, in the order of the groups; `decay_roles` decay besides those that do by default.

    A group with the key `decays` says so for all of its parameters: it was made by role (`trainers.groups`). ``scale``
    is alpha / rank of modules whose parameters do not carry it (`SCALE`).
    """
    names = [name for group in groups for name in group.get("param_names", [None] * len(group["params"]))]
    shapes = [tuple(param.shape) for group in groups for param in group["params"]]
    said = [group.get("decays") for group in groups for _ in group["params"]]
    params = [param for group in groups for param in group["params"]]
    members = [
        dc.replace(member, scale=getattr(param, SCALE, scale))
        for member, param in zip(roles.resolve(names, shapes), params, strict=True)
    ]
    return [_decaying(*each, decay_roles) for each in zip(members, said, strict=True)]


def _decaying(member: Member, said: bool | None, decay_roles: Sequence[str]) -> Member:
    asked = bool({member.role.name, "all"} & set(decay_roles))
    decays = (member.role.decays or asked) if said is None else said
    return member if decays == member.role.decays else dc.replace(member, role=dc.replace(member.role, decays=decays))


def checked_roles(names: Sequence[str] | str) -> tuple[str, ...]:
    """Role names as a tuple; raises ValueError for one that does not exist."""
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in ROLE_NAMES and name != "all":
            raise ValueError(f"decay_roles: there is no role {name!r}; {did_you_mean(name, [*ROLE_NAMES, 'all'])}")
    return names


def splits_lr(groups: Groups, members: Sequence[Member]) -> list[bool]:
    """For each group, whether its parameters' partners have another learning rate: the groups carry LoRA+ already.

    Compares what the scheduler starts from (`initial_lr`), since a warm-up may hold all groups at 0.
    """
    base = [float(group.get("initial_lr", group["lr"])) for group in groups]
    group_of = [number for number, group in enumerate(groups) for _ in group["params"]]
    split = [False] * len(groups)
    for own, member in zip(group_of, members, strict=True):
        partners = member.cofactors or (() if member.partner is None else (member.partner,))
        if any(base[group_of[partner]] != base[own] for partner in partners):
            split[own] = True
    return split
