"""From arguments to a chain: presets, profiles, conflicts and dotted options."""

import dataclasses as dc
import logging
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from hina_kohya.core import registry
from hina_kohya.core.technique import Technique
from hina_kohya.optim import arguments
from hina_kohya.optim.kinds import DECLARED, Argument, Joint, Switch
from hina_kohya.text import did_you_mean

logger = logging.getLogger("hina_kohya")

Rows = Mapping[str, Argument]
BASE = ("adam", "weight_decay")  # what a chain has where no switch puts something else in the place
# Of the bitsandbytes-based classes these names come from; nothing here corresponds to them.
WITHOUT_EFFECT = ("amsgrad", "optim_bits", "args", "min_8bit_size", "percentile_clipping", "block_wise", "is_paged")


@dc.dataclass(frozen=True)
class Resolved:
    """Arguments after presets, conflicts and dotted options: the chain and what was decided on the way."""

    settings: SimpleNamespace
    techniques: list[Technique]
    conflicts: list[str]
    asked: dict[str, tuple[str, ...]]  # argument that was given -> the techniques that it acts by, its own first


def resolve(
    cls: type,
    given: Mapping[str, Any],
    preset: Mapping[str, Any],
    profiles: Mapping[str, Mapping[str, Any]],
) -> Resolved:
    """Turns arguments into a chain. Raises ValueError or TypeError for what is unknown or out of bounds."""
    given, rows = _modern(given), arguments.of(cls)
    everything = {**preset, **given}
    if "profile" in rows:
        everything = {**_profile(everything.get("profile"), profiles), **everything}
    everything = _without_fixed(cls, everything)
    dotted = {name: value for name, value in everything.items() if "." in name}
    plain = {name: value for name, value in everything.items() if "." not in name}
    settings = SimpleNamespace(**arguments.checked(rows, plain), **arguments.fixed(cls))
    conflicts: list[str] = []
    on = _wanted(rows, settings, plain, conflicts)
    options = _options(rows, settings, plain, on)
    idle = [name for name in given if name in rows and rows[name].warns and rows[name].techniques.isdisjoint(on)]
    if idle:
        logger.warning("without effect, since the technique is off: %s", ", ".join(idle))
    for name, value in dotted.items():
        technique, _, option = name.partition(".")
        registry.technique(technique)
        if technique in on:
            options[technique][option] = value
        elif name in given:
            flag = next((row.name for row in _switches(rows) if row.target == technique), None)
            hint = f"add {flag}=True" if flag else "this optimizer does not use it"
            raise ValueError(f"{name} was given, but {technique} is off; {hint}")
    choices = {**preset, **given}  # a profile turns much on that need not fit
    flags = {
        row.name: (row.target, *sorted(row.techniques - {row.target}))
        for row in _switches(rows)
        if choices.get(row.name) and row.target in on
    }
    return Resolved(settings, [registry.build(name, **options[name]) for name in on], conflicts, flags)


def _profile(name: str | None, profiles: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name not in profiles:
        raise ValueError(f"profile = {name!r} does not exist; {did_you_mean(str(name), profiles)}")
    return profiles[name]


def _without_fixed(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a class says once for all may be said again, since old configs do, and not otherwise."""
    fixed, own = arguments.fixed(cls), cls.__name__
    for name, value in fixed.items():
        if (other := given.get(name, value)) != value:
            use = f"use {own.removesuffix('8bit')} for {other!r}"
            raise ValueError(f"{name} = {other!r}: {own} keeps all its {name} in 8 bits; {use}")
    return {name: value for name, value in given.items() if name not in fixed}


def _modern(given: Mapping[str, Any]) -> dict[str, Any]:
    """Old configs: bits become `state`; the rest of what has no meaning here is dropped, and said once."""
    given = dict(given)
    dropped = [name for name in WITHOUT_EFFECT if name in given]
    bits = given.get("optim_bits")
    for name in dropped:
        del given[name]
    if bits == 32:
        given.setdefault("state", "fp32")
        dropped.remove("optim_bits")
    if dropped:
        logger.warning("accepted for old configs, without effect: %s", ", ".join(dropped))
    return given


def _switches(rows: Rows) -> list[Switch]:
    """Those that put a technique into the chain by themselves."""
    return [row for row in rows.values() if isinstance(row, Switch) and not row.instead_of]


def _wanted(rows: Rows, settings: SimpleNamespace, given: Mapping[str, Any], conflicts: list[str]) -> list[str]:
    """Names of the techniques that are on, after conflicts: what was asked for beats a default, then the table."""
    switches = [row for row in rows.values() if isinstance(row, Switch)]
    on = {row.target for row in _switches(rows) if getattr(settings, row.name)}
    asked = {row.target for row in _switches(rows) if given.get(row.name)}
    asked |= {"weight_decay"} if given.get("weight_decay") else set()
    for row in switches:
        if row.instead_of in on and getattr(settings, row.name):
            on = on - {row.instead_of} | {row.target}
            asked.add(row.target)

    def drop(name: str, because: str) -> None:
        on.discard(name)
        if name in asked:
            conflicts.append(f"{name} is off: {because} excludes it")

    if getattr(settings, "full_finetune", False):
        for name in sorted(row.target for row in switches if row.for_adapter and row.target in on):
            drop(name, "full_finetune")
    on -= {name for name in on - asked if _is_displaced(name, asked, switches)}
    on |= {*BASE}
    for row in switches:
        for loser in row.excludes:
            if {row.target, loser} <= on:
                loser_first = loser in asked and row.target not in asked
                drop(*((row.target, loser) if loser_first else (loser, row.target)))
    if conflicts:
        logger.warning("settings that exclude each other: %s", "; ".join(conflicts))
    order = list(registry.techniques())
    return sorted(on, key=order.index)


def _is_displaced(name: str, asked: Iterable[str], switches: Iterable[Switch]) -> bool:
    """Whether one of ``asked`` would have nothing to do where ``name`` acts, and is not meant for the rest."""
    beside = {row.target for row in switches if name in row.beside}
    return any(name in registry.technique(other).yields_to for other in asked if other not in beside)


def _options(
    rows: Rows, settings: SimpleNamespace, given: Mapping[str, Any], on: list[str]
) -> dict[str, dict[str, Any]]:
    """What is not said stays the technique's own."""
    options: dict[str, dict[str, Any]] = {name: {} for name in on}
    for name, row in rows.items():
        if name in given or row.default is not DECLARED:
            for technique, option, value in row.options(getattr(settings, name), on):
                options[technique][option] = value
    for technique, become in {(row.technique, row.become) for row in rows.values() if isinstance(row, Joint)}:
        if technique in on:
            options[technique].update(become(settings))
    return options
