"""Param groups: which keys they may have, within which bounds, and betas that schedulers move."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hina_kohya.core import registry
from hina_kohya.core.chain import Chain
from hina_kohya.core.hyper import Interval, check_value
from hina_kohya.core.technique import Technique
from hina_kohya.text import did_you_mean

# What a group may be made with; schedulers add keys of their own later.
KEYS = {
    "params": "the parameters",
    "param_names": "their names",
    "named": "their names, as sd-scripts' forks call them",
    "name": "of the group; not read",
    "lr": "learning rate",
    "initial_lr": "that a scheduler starts from",
    "weight_decay": "decoupled weight decay",
    "betas": "decays of the averages",
    "decays": "whether weight decay acts on these parameters",
    "techniques": "options by technique",
}
RATE, BETA = Interval("[0, inf)"), Interval("[0, 1)")

Betas = tuple[float, ...]
BetaChanges = Mapping[int, tuple[Betas, Betas]]  # by param group, from and to


def check_group(group: Mapping[str, Any], number: int, betas: Betas | None) -> None:
    """Raises ValueError for a key that means nothing here, or a value out of bounds."""
    for key in group:
        if key not in KEYS:
            raise ValueError(
                f"param group {number} has a key {key!r}, which means nothing here; {did_you_mean(key, KEYS)}"
            )
    for key, default in (("lr", 1e-3), ("initial_lr", 1e-3), ("weight_decay", 1e-2)):
        if key in group:
            check_value(f"param group {number}: {key}", number_of(group[key]), default, RATE)
    if "betas" in group:
        check_betas(f"param group {number}: betas", group["betas"], betas)


def check_betas(name: str, value: Any, like: Betas | None) -> None:
    if like is None:
        raise ValueError(f"{name}: this chain of techniques was made without betas; give each technique its own")
    if not isinstance(value, (tuple, list)) or len(value) != len(like):
        raise ValueError(f"{name} = {value!r} must be {len(like)} numbers, such as {like}")
    for each, default in zip(value, like, strict=True):
        check_value(name, each, default, BETA)


def number_of(value: Any) -> Any:
    """A tensor of one element as a number, which may wait for the device; anything else as it is."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def retimed(technique: Technique, before: Sequence[float], after: Sequence[float]) -> Technique:
    """With those of its betas changed that differ between the two; what was never said stays the technique's own."""
    moved = {
        option: new
        for option, old, new in zip(technique.betas, before, after, strict=False)
        if old != new and getattr(technique, option) != new
    }
    return dc.replace(technique, **moved) if moved else technique


def retimed_chain(chain: Chain, before: Sequence[float], after: Sequence[float]) -> Chain:
    return tuple(retimed(technique, before, after) for technique in chain)


def retimed_options(
    techniques: Mapping[str, Mapping[str, Any]], before: Sequence[float], after: Sequence[float]
) -> dict[str, dict[str, Any]]:
    """The same for a group's options by technique."""
    built = {name: registry.build(name, **options) for name, options in techniques.items()}
    return {name: dc.asdict(retimed(technique, before, after)) for name, technique in built.items()}
