"""Names of techniques: those of `hina_kohya.techniques`, once it is imported, and of other packages.

Others are found by the entry-point group ``hina_kohya.techniques``; ours are a floor above and register themselves.
"""

import dataclasses as dc
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from hina_kohya.core.technique import Technique
from hina_kohya.text import did_you_mean

_TECHNIQUES: dict[str, type[Technique]] = {}

T = TypeVar("T", bound=type[Technique])


def register(technique: T) -> T:
    """Class decorator. Two different classes under one name are an error, whoever brings them."""
    known = _TECHNIQUES.setdefault(technique.name, technique)
    if known.__qualname__ != technique.__qualname__ or known.__module__ != technique.__module__:
        raise ValueError(
            f"technique {technique.name!r} is defined by both {known.__module__} and {technique.__module__}"
        )
    return technique


@cache
def _load_others() -> None:
    for entry in entry_points(group="hina_kohya.techniques"):
        register(entry.load())


def techniques() -> dict[str, type[Technique]]:
    """All registered techniques by name, sorted by stage and name."""
    _load_others()
    return dict(sorted(_TECHNIQUES.items(), key=lambda item: (item[1].stage, item[0])))


def technique(name: str) -> type[Technique]:
    known = techniques()
    if name not in known:
        raise ValueError(f"there is no technique {name!r}; {did_you_mean(name, known)}")
    return known[name]


def build(name: str, **options: Any) -> Technique:
    """A technique from its name and options; unknown options raise, with the near ones."""
    cls = technique(name)
    known = {field.name for field in dc.fields(cls)}
    for option in options:
        if option not in known:
            near = did_you_mean(option, known) if known else f"{name} has no options"
            raise ValueError(f"technique {name!r} has no option {option!r}; {near}")
    return cls(**options)
