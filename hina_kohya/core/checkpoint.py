"""The checkpoint format, and fitting a checkpoint to the parameters of this run.

A checkpoint is torch's: ``state`` by parameter index and ``param_groups``. A parameter's state has ``step`` (int),
``technique.slot`` (values or codes) and ``technique.slot.scale``. Nothing in it knows of buckets or of chain order.
"""

import dataclasses as dc
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hina_kohya.core import registry
from hina_kohya.core.bucket import matrix_shape
from hina_kohya.core.roles import Member
from hina_kohya.core.technique import Technique

logger = logging.getLogger("hina_kohya")

_NOT_SETTINGS = ("params", "param_names")


@dc.dataclass(frozen=True)
class Fitting:
    """A checkpoint in this run's order."""

    state: dict[Tensor, dict[str, Any]]
    param_groups: list[dict[str, Any]]
    places: list[int]  # of this run's parameters among the checkpoint's


def fit(
    saved: Mapping[str, Any], groups: Sequence[dict[str, Any]], members: Sequence[Member], *, keep_settings: bool
) -> Fitting:
    """Maps a checkpoint to this run's parameters: by name where both have names, else by position."""
    saved_groups = saved["param_groups"]
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
        _tell(settings, current, keep_settings)
        chosen = {**settings, **current} if keep_settings else {**current, **settings}
        fitted_groups.append({**chosen, "params": [next(iterator) for _ in mine["params"]]})
        chain = {name: registry.build(name, **options) for name, options in chosen["techniques"].items()}
        chains.extend(chain for _ in mine["params"])
    state: dict[Tensor, dict[str, Any]] = {}
    for param, member, saved_id, chain in zip(params, members, ids, chains, strict=True):
        if entry := saved["state"].get(saved_id):
            _check(entry, param, member, None if member.partner is None else params[member.partner], chain)
            state[param] = dict(entry)
    place = {saved_id: k for k, saved_id in enumerate(i for group in saved_groups for i in group["params"])}
    return Fitting(state, fitted_groups, [place[saved_id] for saved_id in ids])


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
    """Raises where the state is not ours, or not of the size that the technique keeps of this parameter."""
    name = member.name or f"of shape {tuple(param.shape)}"
    for key, value in entry.items():
        owner, _, slot = key.partition(".")
        if key == "step":
            continue
        if not slot or owner not in registry.techniques():
            raise ValueError(
                f"parameter {name}: the checkpoint's state {key!r} is not one of this package's; "
                "it was saved by another optimizer"
            )
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


def _tell(saved: Mapping[str, Any], current: Mapping[str, Any], keep: bool) -> None:
    """One line when the checkpoint and this run disagree on settings other than the scheduled learning rate."""
    differing = sorted(key for key in saved if key in current and key != "lr" and saved[key] != current[key])
    if differing and keep:
        logger.warning("resume: keeping this run's %s instead of the checkpoint's", ", ".join(differing))
    elif differing:
        logger.warning(
            "resume: %s differ; using the checkpoint's (override_hyperparameters=True keeps this run's)",
            ", ".join(differing),
        )
