"""`--optimizer_type` to a class: the entry-point group `sd_scripts.optimizers`, this package's and anybody's."""

import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import hina_kohya
from hina_kohya.text import did_you_mean
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

GROUP = "sd_scripts.optimizers"


def entries() -> list[EntryPoint]:
    """Every entry of the group, sorted by name; ours also where this package has no metadata, as on PYTHONPATH."""
    result = [*registered(tuple(sys.path))]
    names = {entry.name for entry in result if _is_ours(entry)}
    result += [EntryPoint(name, f"hina_kohya:{name}", GROUP) for name in hina_kohya.OPTIMIZERS if name not in names]
    return sorted(result, key=lambda entry: entry.name.lower())


@lru_cache(maxsize=8)
def registered(folders: Sequence[str]) -> tuple[EntryPoint, ...]:
    """Of all packages in ``folders``, which are those of `sys.path`. A check asks for it hundreds of times."""
    return tuple(entry_points(group=GROUP))


def find(name: str) -> EntryPoint | None:
    """The entry of a short name, without regard to case. Raises UserError if two packages claim it."""
    claimants = [entry for entry in entries() if entry.name.lower() == name.lower()]
    if len({entry.value for entry in claimants}) > 1:
        claims = " and ".join(f"{package(entry)} ({path(entry)})" for entry in claimants)
        raise UserError(f"optimizer_type {name} is claimed by {claims}; use the dotted path of the one you mean")
    return claimants[0] if claimants else None


def package(entry: EntryPoint) -> str:
    if _is_ours(entry):
        return "hina-kohya"
    return entry.dist.name if entry.dist else "an unknown package"


def _is_ours(entry: EntryPoint) -> bool:
    return entry.value.startswith("hina_kohya:")


def path(entry: EntryPoint) -> str:
    """The dotted path that works without any hook."""
    return entry.value.replace(":", ".")


def resolve(optimizer_type: str | None, trainer: Trainer) -> Any:
    """The class of a registered optimizer; None where the trainer resolves the name itself.

    Raises UserError for a short name that nobody knows.
    """
    name = (optimizer_type or "").strip()
    if not name or name.lower() in trainer.optimizers.paths:
        return None
    if "." in name:
        return _load(name) if name.startswith("hina_kohya.") or name in map(path, entries()) else None
    if name in _torch_names():
        return None
    entry = find(name)
    if entry is not None:
        return _load(path(entry))
    dotted = SD_SCRIPTS.optimizers.paths.get(name.lower())
    if dotted is not None:
        raise UserError(f"{trainer.name} has no optimizer {name!r}; write {dotted}")
    names = {*trainer.optimizers.names, *_torch_names(), *(entry.name for entry in entries())}
    raise UserError(f"there is no optimizer {name!r}; {did_you_mean(name, names)} (hina-kohya optimizers lists them)")


def _load(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"optimizer_type {dotted} cannot be loaded: {error}") from error


def _torch_names() -> list[str]:
    import torch.optim  # noqa: PLC0415 (names are asked for where torch is not needed)

    return [name for name, thing in vars(torch.optim).items() if isinstance(thing, type)]
