"""The kinds of constructor arguments, of which `arguments` is the table.

An argument that is a technique's option has default, bounds and meaning from the technique, and states none of them.
"""

import dataclasses as dc
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import hina_kohya.techniques  # noqa: F401 (importing it registers them)
from hina_kohya.core import registry
from hina_kohya.core.hyper import check_value, first_sentence
from hina_kohya.core.technique import Stage
from hina_kohya.text import did_you_mean

EVERY = ("Family",)
DECLARED = object()  # as a default: the one that the declaration has
Options = Iterator[tuple[str, str, Any]]  # technique, option, value


@dc.dataclass(frozen=True)
class Argument:
    """A row of the table.

    target : what it sets; each kind says how
    classes: that have it, with the classes below them
    default: where it is not the declaration's; a class may have yet another one
    warns  : whether it is said to be without effect where none of its techniques is on
    """

    name: str
    target: Any
    classes: tuple[str, ...] = EVERY
    default: Any = dc.field(default=DECLARED, kw_only=True)
    warns: bool = dc.field(default=False, kw_only=True)

    @property
    def start(self) -> Any:
        """The default of the class that the row was looked up for."""
        return self.declared_default() if self.default is DECLARED else self.default

    @property
    def techniques(self) -> set[str]:
        """Those that it acts through; empty where it acts on the optimizer itself."""
        return set()

    def fields(self) -> tuple[dc.Field[Any], ...]:
        """The declarations that it stands for."""
        return ()

    def declared_default(self) -> Any:
        return self.fields()[0].default

    def annotation(self) -> Any:
        return self.fields()[0].type

    def bounds(self) -> str:
        interval = self.fields()[0].metadata["interval"]
        return interval.text if interval else ""

    def doc(self) -> str:
        return self.fields()[0].metadata["doc"]

    def check(self, value: Any, default: Any) -> None:
        """Raises ValueError for a value out of bounds."""
        check_value(self.name, value, default, self.fields()[0].metadata["interval"])

    def options(self, value: Any, on: Collection[str]) -> Options:
        """What a value that was given becomes: technique, option and its value."""
        return iter(())


@dc.dataclass(frozen=True)
class Own(Argument):
    """About the optimizer, and declared in the row: ``target`` is ``hyper(...)``, ``kind`` its type."""

    kind: Any = dc.field(default=float, kw_only=True)

    def fields(self) -> tuple[dc.Field[Any], ...]:
        return (self.target,)

    def annotation(self) -> Any:
        return self.kind


@dc.dataclass(frozen=True)
class Joint(Own):
    """Declared in the row, in units of its own; ``become`` makes a technique's options of all that are joint."""

    technique: str = dc.field(kw_only=True)
    become: Callable[[SimpleNamespace], dict[str, Any]] = dc.field(kw_only=True)
    warns: bool = dc.field(default=True, kw_only=True)

    @property
    def techniques(self) -> set[str]:
        return {self.technique}


@dc.dataclass(frozen=True)
class Option(Argument):
    """``target``: a technique's option, or several that get the same value. The first one's declaration counts."""

    warns: bool = dc.field(default=True, kw_only=True)

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def techniques(self) -> set[str]:
        return {target.partition(".")[0] for target in self.targets}

    def fields(self) -> tuple[dc.Field[Any], ...]:
        return tuple(map(_field, self.targets))

    def annotation(self) -> Any:
        kind: Any = self.fields()[0].type
        return kind | None if self.default is None else kind

    def doc(self) -> str:
        docs: dict[str, list[str]] = defaultdict(list)
        first = self.fields()[0].default
        for target, field in zip(self.targets, self.fields(), strict=True):
            other = f" ({field.default})" if field.default != first else ""
            docs[field.metadata["doc"] + other].append(target.partition(".")[0])
        doc = "; ".join(f"{', '.join(names)}: {doc}" for doc, names in docs.items())
        return f"{doc}; None: {first}" if self.default is None else doc

    def options(self, value: Any, on: Collection[str]) -> Options:
        for technique, _, option in (target.partition(".") for target in self.targets):
            if technique in on and value is not None:
                yield technique, option, value


@dc.dataclass(frozen=True)
class Numbers(Option):
    """As many numbers as ``target`` has options, each for its own."""

    warns: bool = dc.field(default=False, kw_only=True)

    def label(self, number: int) -> str:
        return f"{self.name}[{number}]"

    def declared_default(self) -> tuple[Any, ...]:
        return tuple(field.default for field in self.fields())

    def annotation(self) -> Any:
        return Sequence[float]

    def doc(self) -> str:
        return "; ".join(field.metadata["doc"] for field in self.fields())

    def check(self, value: Any, default: Any) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != len(self.targets):
            count = {2: "two", 3: "three"}[len(self.targets)]
            raise ValueError(f"{self.name} = {value!r} must be {count} numbers, such as {default}")
        for number, (each, field) in enumerate(zip(value, self.fields(), strict=True)):
            check_value(self.label(number), each, default[number], field.metadata["interval"])

    def options(self, value: Any, on: Collection[str]) -> Options:
        for target, each in zip(self.targets, value, strict=True):
            yield from Option(self.name, target).options(each, on)


@dc.dataclass(frozen=True)
class Betas(Numbers):
    """Numbers for whichever technique makes the step: for its own ``betas``, in their order."""

    def label(self, number: int) -> str:
        return self.targets[number]

    def options(self, value: Any, on: Collection[str]) -> Options:
        for technique in on:
            if registry.technique(technique).stage is Stage.MOMENT:
                for option, each in zip(registry.technique(technique).betas, value, strict=False):
                    yield technique, option, each


@dc.dataclass(frozen=True)
class Switch(Option):
    """Puts the technique ``target`` into the chain.

    sets       : options of techniques that are switched with it
    excludes   : techniques that cannot be on beside it and fit the same parameters; the one that was asked for stays
    beside     : techniques that it yields to and that stay on where they are on by default: it is for what they leave
    for_adapter: left out where whole weights are trained
    instead_of : it acts where that technique is on, and takes its place
    """

    sets: tuple[str, ...] = dc.field(default=(), kw_only=True)
    excludes: tuple[str, ...] = dc.field(default=(), kw_only=True)
    beside: tuple[str, ...] = dc.field(default=(), kw_only=True)
    for_adapter: bool = dc.field(default=False, kw_only=True)
    instead_of: str = dc.field(default="", kw_only=True)
    warns: bool = dc.field(default=False, kw_only=True)

    @property
    def targets(self) -> tuple[str, ...]:
        return self.sets

    @property
    def techniques(self) -> set[str]:
        return {self.target} | super().techniques

    def declared_default(self) -> bool:
        return False

    def annotation(self) -> Any:
        return bool

    def bounds(self) -> str:
        return ""

    def doc(self) -> str:
        place = f"{self.target}, instead of {self.instead_of}" if self.instead_of else self.target
        return f"{place}: {first_sentence(registry.technique(self.target))}"

    def check(self, value: Any, default: Any) -> None:
        check_value(self.name, value, default, None)


def _field(target: str) -> dc.Field[Any]:
    technique, _, option = target.partition(".")
    fields = {field.name: field for field in dc.fields(registry.technique(technique))}
    if option not in fields:
        raise ValueError(f"the table of arguments names {target!r}; {did_you_mean(option, fields)}")
    return fields[option]
