"""Param groups by role: names in torch's form, LoRA+ for every algorithm, weight decay for what should decay.

Pure: groups in, groups out. Sources of the two rules: LoRA+ (Hayou et al., arXiv:2402.12354) speeds up the factor that
starts at zero; which roles decay is `parameters.role_table`.
"""

import dataclasses as dc
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from hina_kohya.parameters import names, roles
from hina_kohya.parameters.role_table import Kind, Role
from hina_kohya.parameters.roles import Member
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import DEFAULT, NetworkOptions

logger = logging.getLogger("hina_kohya")

Group = dict[str, Any]
Named = list[tuple[str, Tensor]]


@dc.dataclass(frozen=True, order=True)
class _Part:
    """Where a parameter of a group goes; the order is that of the resulting groups."""

    plus: bool
    still: bool  # does not decay


def named_groups(groups: Sequence[Mapping[str, Any]], named_params: Iterable[tuple[str, Tensor]]) -> list[Named] | None:
    """Every group's parameters as `(name, tensor)`; None if one has no name, since torch takes all named or none."""
    known = {id(param): name for name, param in named_params}
    found: list[Named] = []
    for group in groups:
        params, given = names.named(group["params"], group.get("param_names"))
        given = given or [known.get(id(param), "") for param in params]
        if not all(given):
            return None
        found.append(list(zip(given, params, strict=True)))
    return found


def named_alike(params: Any) -> Any:
    """Groups in which what a trainer has added to named parameters has a name, too: torch takes all named or none."""
    if not (isinstance(params, list) and all(isinstance(group, Mapping) for group in params)):
        return params
    lists = {index: group["params"] for index, group in enumerate(params) if isinstance(group["params"], list)}
    if not any(isinstance(item, tuple) for items in lists.values() for item in items):
        return params
    counter = itertools.count()
    return [
        {
            **group,
            "params": [
                item if isinstance(item, tuple) else (f"added.{next(counter)}", item)
                for item in ([group["params"]] if isinstance(group["params"], Tensor) else group["params"])
            ],
        }
        for group in params
    ]


def regroup(
    groups: Sequence[Mapping[str, Any]],
    descriptions: Sequence[str] | None,
    named_params: Iterable[tuple[str, Tensor]],
    options: NetworkOptions,
    default_lr: float | None = None,
) -> tuple[list[Group], list[str] | None]:
    """The same parameters with names, split by role where `options` ask for it; one description a group.

    Without options: as many groups, with the same settings and order. Raises UserError where an option cannot act.
    """
    found = named_groups(groups, named_params)
    if not (options.splits_decay or options.splits_lr):
        if found is None:
            return [dict(group) for group in groups], None if descriptions is None else list(descriptions)
        return [_renamed(group, pairs) for group, pairs in zip(groups, found, strict=True)], _listed(descriptions)
    if found is None:
        raise UserError(
            "network_args: weight_decay, wd_* and loraplus_* need parameter names, and this network gives none"
        )
    members = roles.resolve(
        [n for pairs in found for n, _ in pairs], [tuple(p.shape) for pairs in found for _, p in pairs]
    )
    lrs = [group.get("lr", default_lr) for group, pairs in zip(groups, found, strict=True) for _ in pairs]
    plus, still = _faster(members, lrs, options), _still(members, options)
    labels = list(descriptions) if descriptions is not None else [_place(pairs) for pairs in found]
    done: list[Group] = []
    said: list[str] = []
    start = 0
    for group, pairs, label in zip(groups, found, labels, strict=True):
        parts: dict[_Part, list[int]] = defaultdict(list)
        for index in range(start, start + len(pairs)):
            parts[_Part(plus[index], still[index])].append(index)
        for part in sorted(parts):
            settings = _settings(group, part, options, default_lr, members[parts[part][0]].name or "")
            done.append(_renamed(settings, [pairs[index - start] for index in parts[part]]))
            suffix = " plus" * part.plus + " no decay" * part.still
            said.append(f"{label.rstrip()}{suffix}" if suffix else label)  # FLUX: "textencoder 1 "
        start += len(pairs)
    return done, said


def _renamed(group: Mapping[str, Any], pairs: Named) -> Group:
    rest = {key: value for key, value in group.items() if key != "param_names"}
    return {**rest, "params": pairs}


def _listed(descriptions: Sequence[str] | None) -> list[str] | None:
    return None if descriptions is None else list(descriptions)


def _settings(group: Mapping[str, Any], part: _Part, options: NetworkOptions, lr: float | None, name: str) -> Group:
    settings = dict(group)
    if part.plus:
        base = group.get("lr", lr)
        if base is None:
            raise UserError("network_args: a LoRA+ ratio needs a learning rate; set --learning_rate or --unet_lr")
        settings["lr"] = base * (options.ratio(name) or 1.0)
    if options.splits_decay:
        settings["decays"] = not part.still  # HinaAdamW follows it instead of its own table of roles
        if part.still or options.weight_decay is not None:
            settings["weight_decay"] = 0.0 if part.still else options.weight_decay
    return settings


def starts_at_zero(role: Role) -> bool:
    """Whether LoRA+ speeds it up. LyCORIS `full` trains a whole weight; its difference from the base starts at zero.

    With use_scalar it is the scalar that starts at zero; as `lora_up` does in the networks' own LoRA+, a factor counts
    by its name all the same.
    """
    return (role.zero_init and role.kind in (Kind.FACTOR, Kind.DENSE)) or role.name == "full_weight"


def _faster(members: Sequence[Member], lrs: Sequence[Any], options: NetworkOptions) -> list[bool]:
    """Modules whose parameters differ in learning rate have LoRA+ from the network itself and are left alone."""
    if not options.splits_lr:
        return [False] * len(members)
    rates: dict[tuple[str, str], set[Any]] = defaultdict(set)
    for member, lr in zip(members, lrs, strict=True):
        rates[member.module, member.adapter].add(lr)
    faster = [
        len(rates[member.module, member.adapter]) == 1
        and options.ratio(member.name or "") is not None
        and starts_at_zero(roles.identify(member.name or "", member.shape)[1])
        for member in members
    ]
    own = sum(len(each) > 1 for each in rates.values())
    found = Counter(member.role.name for member, is_faster in zip(members, faster, strict=True) if is_faster)
    if found:
        logger.info("hina-kohya: LoRA+ on %s", ", ".join(f"{count} {name}" for name, count in sorted(found.items())))
    elif not own:
        logger.warning("hina-kohya: a LoRA+ ratio was given, but no parameter of this network starts at zero")
    return faster


def _still(members: Sequence[Member], options: NetworkOptions) -> list[bool]:
    if not options.splits_decay:
        return [False] * len(members)
    for pattern in options.wd_exclude:
        if not any(fnmatchcase(member.name or "", pattern) for member in members):
            some = members[0].name if members else "nothing is trained"
            raise UserError(f"network_args: wd_exclude={pattern!r} matches no parameter; names look like {some}")
    return [not _decays(member, options) for member in members]


def _decays(member: Member, options: NetworkOptions) -> bool:
    if any(fnmatchcase(member.name or "", pattern) for pattern in options.wd_exclude):
        return False
    patterns = options.wd_roles or (DEFAULT,)
    return (DEFAULT in patterns and member.role.decays) or any(fnmatchcase(member.role.name, each) for each in patterns)


def _place(pairs: Named) -> str:
    """sd-scripts' words for networks that describe nothing."""
    return "textencoder" if pairs and pairs[0][0].startswith("lora_te") else "unet"
