"""The checkpoint format, and fitting a checkpoint to the parameters of this run.

A checkpoint is torch's: ``state`` by parameter index and ``param_groups``; beside them what wrote it (`about`). A
parameter's state has ``step`` (int32, of one element; a plain int before format 1), ``technique.slot`` (values or
codes) and ``technique.slot.scale``. Nothing in it knows of buckets or of chain order.
"""

import dataclasses as dc
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

import hina_kohya
from hina_kohya.core import registry
from hina_kohya.core.bucket import matrix_shape
from hina_kohya.core.group_optimizer import GroupOptimizer
from hina_kohya.core.schedules import NewRate, base_rate, listed
from hina_kohya.core.state import formats
from hina_kohya.core.technique import Technique
from hina_kohya.parameters.roles import Member

logger = logging.getLogger("hina_kohya")

KEY = "hina_kohya"
_NOT_SETTINGS = ("params", "param_names")
_RATES = ("lr", "initial_lr")
# What is not asked for by anybody, but kept by schedulers in the groups.
_KEPT_BY_SCHEDULERS = ("max_lr", "min_lr", "max_momentum", "base_momentum")
_OVERRIDE = "override_hyperparameters=True"


@dc.dataclass(frozen=True)
class Fitting:
    """A checkpoint in this run's order."""

    state: dict[Tensor, dict[str, Any]]
    param_groups: list[dict[str, Any]]
    places: list[int]  # of this run's parameters among the checkpoint's
    new_rates: tuple[NewRate, ...]  # of each group, where this run's settings are kept


def about(optimizer: Any) -> dict[str, Any]:
    """What wrote a checkpoint: kept in it, for those that read it."""
    return {"format": formats.CURRENT, "release": hina_kohya.__version__, "optimizer": type(optimizer).__name__}


def load(
    optimizer: GroupOptimizer,
    saved: Mapping[str, Any],
    loader: Callable[[dict[str, Any]], None],
    *,
    keep_settings: bool,
) -> Fitting:
    """What the checkpoint has for this optimizer, whose hooks and groups are served by ``loader``, torch's own.

    That one would cast the state to the parameters' dtypes: it must not see it. Raises ValueError as `fit`.
    """
    fittings: list[Fitting] = []

    def take_state(_optimizer: Any, adapted: dict[str, Any]) -> dict[str, Any]:
        groups, members, name = optimizer.param_groups, optimizer.members, type(optimizer).__name__
        fittings.append(fit(adapted, groups, members, keep_settings=keep_settings, name=name))
        return {**adapted, "state": {}, "param_groups": fittings[0].param_groups}

    handle = optimizer.register_load_state_dict_pre_hook(take_state)  # the last one: the others have adapted it
    try:
        loader(dict(saved))
    finally:
        handle.remove()
    return fittings[0]


def fit(
    saved: Mapping[str, Any],
    groups: Sequence[dict[str, Any]],
    members: Sequence[Member],
    *,
    keep_settings: bool,
    name: str,
) -> Fitting:
    """Maps a checkpoint to this run's parameters, which optimizer ``name`` has: by name where both have names, else by
    position. Raises ValueError where it does not fit."""
    _refuse_newer(saved)
    _refuse_foreign(saved)
    version = saved.get(KEY, {}).get("format", 0)
    saved_groups = [
        {**group, "techniques": formats.options(group["techniques"], version)} for group in saved["param_groups"]
    ]
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"the checkpoint has {len(saved_groups)} param groups, this run has {len(groups)}; "
            "use the same --network_args, --unet_lr and --text_encoder_lr as the run that was saved"
        )
    ids = _ids(saved_groups, groups)
    params = [param for group in groups for param in group["params"]]
    iterator = iter(ids)
    fitted_groups = []
    chains: list[dict[str, Technique]] = []
    for mine, theirs in zip(groups, saved_groups, strict=True):
        settings = {key: value for key, value in theirs.items() if key not in _NOT_SETTINGS}
        current = {key: value for key, value in mine.items() if key not in _NOT_SETTINGS}
        chosen = {**settings, **current} if keep_settings else {**current, **settings}
        fitted_groups.append({**chosen, "params": [next(iterator) for _ in mine["params"]]})
        chain = {name: registry.build(name, **options) for name, options in chosen["techniques"].items()}
        chains.extend(chain for _ in mine["params"])
    state: dict[Tensor, dict[str, Any]] = {}
    for param, member, saved_id, chain in zip(params, members, ids, chains, strict=True):
        if entry := saved["state"].get(saved_id):
            _check(entry, param, member, None if member.partner is None else params[member.partner], chain)
            state[param] = formats.upgraded(entry, version)
    _say_class(saved, name, keep_settings)
    rates = tuple(
        NewRate(base_rate(mine), base_rate(theirs), float(theirs["lr"]))
        for mine, theirs in zip(groups, saved_groups, strict=True)
    )
    _say_settings(saved_groups, groups, keep_settings)
    _say_rates(rates, keep_settings)
    place = {saved_id: k for k, saved_id in enumerate(i for group in saved_groups for i in group["params"])}
    return Fitting(state, fitted_groups, [place[saved_id] for saved_id in ids], rates if keep_settings else ())


def _refuse_newer(saved: Mapping[str, Any]) -> None:
    wrote = saved.get(KEY, {})
    if wrote.get("format", 0) > formats.CURRENT:
        raise ValueError(
            f"the checkpoint has format {wrote['format']}, of hina-kohya {wrote.get('release', 'of a later release')}; "
            f"this release ({hina_kohya.__version__}) reads up to {formats.CURRENT}: pip install --upgrade hina-kohya"
        )


def _refuse_foreign(saved: Mapping[str, Any]) -> None:
    """Raises for another optimizer's checkpoint, with what to type instead."""
    keys = {key for entry in saved["state"].values() for key in entry} - {"step"}
    strange = sorted(key for key in keys if key.partition(".")[0] not in registry.techniques() or "." not in key)
    if not strange and all("techniques" in group for group in saved["param_groups"]):
        return
    if {"state1", "state2"} <= keys or any("bnb" in key for key in keys):
        whose, name = "bitsandbytes, as AdamW8bit keeps it", "AdamW8bit"
    elif {"exp_avg", "exp_avg_sq"} <= keys:
        whose, name = "torch's AdamW or of one like it", "AdamW"
    else:
        whose, name = f"another optimizer ({', '.join(strange[:4]) or 'no state of a technique'})", "(the one it was)"
    raise ValueError(
        f"the checkpoint's optimizer state is that of {whose}; it was saved by another optimizer, and there is no way "
        f"to go on from it with this one. Go on with that: --optimizer_type {name}. Or keep the weights and start the "
        'averages anew: --network_weights "....safetensors" (saved beside the state) instead of --resume'
    )


def _ids(saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> list[Any]:
    """For each of this run's parameters, its id in the checkpoint."""
    sizes, saved_sizes = ([len(group["params"]) for group in side] for side in (groups, saved_groups))
    if all("param_names" in group for group in (*groups, *saved_groups)):
        by_name = {n: i for group in saved_groups for n, i in zip(group["param_names"], group["params"], strict=True)}
        names = [name for group in groups for name in group["param_names"]]
        if missing := [name for name in names if name not in by_name]:
            raise ValueError(
                f"{len(missing)} of {len(names)} parameters are not in the checkpoint, {missing[0]!r} first; "
                "it was saved from another network"
            )
        return [by_name[name] for name in names]
    if sizes != saved_sizes:
        raise ValueError(
            f"the checkpoint has {saved_sizes} parameters in its groups, this run has {sizes}; "
            "it was saved from another network"
        )
    return [saved_id for group in saved_groups for saved_id in group["params"]]


def _check(
    entry: Mapping[str, Any], param: Tensor, member: Member, partner: Tensor | None, chain: Mapping[str, Technique]
) -> None:
    """Raises where the state is not of the size that the technique keeps of this parameter."""
    name = member.name or f"of shape {tuple(param.shape)}"
    for key, value in entry.items():
        owner, _, slot = key.partition(".")
        technique = chain[owner].fit(member) if owner in chain else None
        if technique is None or slot not in technique.kept() or not isinstance(value, Tensor):
            continue
        beside = None if partner is None else matrix_shape(partner.shape)
        size = math.prod(technique.slot_shape(slot, *matrix_shape(param.shape), beside))
        padding = value.shape[-2] if value.dim() == 2 and value.element_size() == 1 else 0
        if not size <= value.numel() <= size + padding:
            raise ValueError(
                f"parameter {name} has {size} values, the checkpoint's {key} {value.numel()}; "
                "it was saved with another rank, factor or option"
            )


def _say_class(saved: Mapping[str, Any], name: str, keep: bool) -> None:
    wrote = saved.get(KEY, {}).get("optimizer", name)
    if wrote != name:
        logger.warning(
            "resume: the checkpoint was saved by %s; %s", wrote,
            f"{name} goes on with the averages that both keep, the others start anew" if keep
            else f"its techniques and settings go on under the name {name} ({_OVERRIDE}: those of {name})",
        )  # fmt: skip


def _say_settings(saved: Sequence[Mapping[str, Any]], current: Sequence[Mapping[str, Any]], keep: bool) -> None:
    """One line when the checkpoint and this run disagree on settings other than the learning rate."""
    differing: dict[str, tuple[Any, Any]] = {}
    for mine, theirs in zip(current, saved, strict=True):
        a, b = _flat(mine), _flat(theirs)
        differing |= {key: (b[key], a[key]) for key in sorted(a.keys() & b.keys()) if a[key] != b[key]}
        on, was_on = mine["techniques"], theirs["techniques"]
        differing |= {f"{name} (technique)": ("off", "on") for name in sorted(on.keys() - was_on.keys())}
        differing |= {f"{name} (technique)": ("on", "off") for name in sorted(was_on.keys() - on.keys())}
    if not differing:
        return
    used = ", ".join(f"{key} = {mine if keep else theirs}" for key, (theirs, mine) in differing.items())
    instead = ", ".join(str(theirs if keep else mine) for theirs, mine in differing.values())
    whose = ("this run's", "the checkpoint's") if keep else ("the checkpoint's", "this run's")
    hint = "" if keep else f" ({_OVERRIDE} keeps this run's)"
    logger.warning("resume: using %s %s instead of %s %s%s", whose[0], used, whose[1], instead, hint)


def _flat(group: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a group, those of techniques by `technique.option`, lists as tuples: JSON knows no others.

    Without betas where a scheduler moves them.
    """
    plain = {k: v for k, v in group.items() if k not in (*_NOT_SETTINGS, *_RATES, *_KEPT_BY_SCHEDULERS, "techniques")}
    omissions = ("betas",) if "base_momentum" in group else ()
    for name, options in group["techniques"].items():
        betas = registry.technique(name).betas if omissions else ()
        plain |= {f"{name}.{option}": value for option, value in options.items() if option not in betas}
    plain = {key: value for key, value in plain.items() if key not in omissions}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}


def _say_rates(rates: Sequence[NewRate], keep: bool) -> None:
    if all(rate.asked == rate.saved for rate in rates):
        return
    asked, saved = listed([rate.asked for rate in rates]), listed([rate.saved for rate in rates])
    if keep:
        logger.warning(
            "resume: learning rate %s instead of the checkpoint's %s; a scheduler that is restored after this goes "
            "back to %s at its next step, unless hina-kohya's hooks are on", asked, saved, saved,
        )  # fmt: skip
    else:
        logger.warning(
            "resume: learning rate %s was asked for; the checkpoint's schedule (%s) goes on; add %s for %s",
            asked, saved, _OVERRIDE, asked,
        )  # fmt: skip
