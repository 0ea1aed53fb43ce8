"""A change of what the user wrote, as data: it can be tried before it is printed."""

import dataclasses as dc
import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from hina_kohya.check.reading import kohya_ss
from hina_kohya.check.reading.source import Form, Source


@dc.dataclass(frozen=True)
class Cell:
    """One change of a dataset file: at `path`, such as ("datasets", 0, "subsets", 1), `old` becomes `new`.

    old, new: keys; "" for the old one adds, for the new one takes out
    """

    where: str
    path: tuple[str | int, ...]
    old: str
    new: str = ""
    value: Any = None

    def applied(self, content: Any, path: tuple[str | int, ...] | None = None) -> Any:
        path = self.path if path is None else path
        if path and isinstance(content, list):
            return [self.applied(each, path[1:]) if place == path[0] else each for place, each in enumerate(content)]
        if path and isinstance(content, dict):
            return {key: self.applied(each, path[1:]) if key == path[0] else each for key, each in content.items()}
        rest = {key: value for key, value in content.items() if key not in (self.old, self.new)}
        return {**rest, self.new: self.value} if self.new else rest

    @property
    def step(self) -> tuple[str, str]:
        line = toml_line(self.new, self.value) if self.new else self.old
        return ("write" if self.new else "remove"), f"{line}   (in {self.where})"


@dc.dataclass(frozen=True)
class Edit:
    """
    sets   : option -> value
    removes: options that are taken out
    words  : list option -> pairs of an old word and the new one; "" for the old one adds, for the new one takes out
    tables : changes of the dataset file
    """

    sets: Mapping[str, Any] = dc.field(default_factory=dict)
    removes: tuple[str, ...] = ()
    words: Mapping[str, tuple[tuple[str, str], ...]] = dc.field(default_factory=dict)
    tables: tuple["Cell", ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.sets, *self.words, *self.removes)))

    def __add__(self, other: "Edit") -> "Edit":
        """Both, one after the other."""
        words = {key: tuple(dict.fromkeys((*self.words.get(key, ()), *other.words.get(key, ()))))
                 for key in (*self.words, *other.words)}  # fmt: skip
        sets = {key: value for key, value in self.sets.items() if key not in other.removes} | {**other.sets}
        removes = (*(key for key in self.removes if key not in other.keys), *other.removes)
        tables = tuple(dict.fromkeys((*self.tables, *other.tables)))
        return Edit(sets, tuple(dict.fromkeys(removes)), words, tables)

    def applied(self, source: Source) -> Source:
        """What the user would have then."""
        values = {key: value for key, value in source.values.items() if key not in self.removes}
        values |= {key: self._reworded(key, source.values.get(key)) for key in self.words}
        values |= self.sets
        keys = {*self.keys}
        typed = {*self.sets, *self.words} if source.form in (Form.COMMAND, Form.SCRIPT) else set()
        content = None if "dataset_config" in keys else source.tables
        for cell in self.tables if content is not None else ():
            content = cell.applied(content)
        return dc.replace(
            source,
            values=values,
            words=(),
            tables=content,
            tables_file=None if content is None else source.tables_file,
            typed=(source.typed | typed) - {*self.removes},
            refused={key: why for key, why in source.refused.items() if key not in keys},
            repeated={key: repeats for key, repeats in source.repeated.items() if key not in keys},
        )

    def _reworded(self, key: str, value: Any) -> list[Any]:
        words = list(value) if isinstance(value, (list, tuple)) else []
        for old, new in self.words[key]:
            if not old:
                words += [new]
            elif old in map(str, words):
                place = list(map(str, words)).index(old)
                words[place : place + 1] = [new] if new else []
        return words

    def steps(self, source: Source) -> list[tuple[str, str]]:
        """What to do, as pairs of a verb and a line, in the form that the source has."""
        values = self.applied(source).values
        removed = {*self.removes, *(key for key in self.words if not values[key])}
        return [
            *(("write", _line(source, key, values[key])) for key in self.keys if key not in removed),
            *(("remove", _shown(source, key)) for key in self.keys if key in removed and key in source.values),
            *(cell.step for cell in self.tables),
        ]


def put(**values: Any) -> Edit:
    """Sets options."""
    return Edit(sets=values)


def drop(*keys: str) -> Edit:
    return Edit(removes=keys)


def rename(old: str, new: str, value: Any) -> Edit:
    return Edit(sets={new: value}, removes=(old,))


def reword(key: str, *pairs: tuple[str, str]) -> Edit:
    """Changes words of a list option."""
    return Edit(words={key: pairs})


def argument(key: str, words: Iterable[Any], name: str, value: str = "") -> Edit:
    """Sets `name=value` among the words of a list option; without a value, takes it out."""
    matches = [str(word) for word in words if str(word).partition("=")[0].strip() == name]
    new = f"{name}={value}" if value else ""
    pairs = [(word, "") for word in matches[:-1]] + ([(matches[-1], new)] if matches else [("", new)])
    return Edit(words={key: tuple(pair for pair in pairs if any(pair))})


def _line(source: Source, key: str, value: Any) -> str:
    if source.form in (Form.COMMAND, Form.SCRIPT) and (key in source.typed or not source.values.get(key)):
        return command_words(key, value)
    if source.form is Form.KOHYA_SS:
        return _of_kohya_ss(source, key, value)
    return toml_line(key, value)


def _of_kohya_ss(source: Source, key: str, value: Any) -> str:
    """In its JSON; what it computes itself goes into the field for further words, which win."""
    if key in ("network_args", "network_module", "max_train_steps") or key in source.typed:
        return f"additional_parameters: {command_words(key, value)}"
    text = " ".join(map(str, value)) if isinstance(value, list) else value
    return f'"{kohya_ss.NAMES.get(key, key)}": {json.dumps(text)}'


def _shown(source: Source, key: str) -> str:
    return f"--{key}" if key in source.typed else key


def command_words(key: str, value: Any) -> str:
    if value is True:
        return f"--{key}"
    words = value if isinstance(value, (list, tuple)) else [value]
    return " ".join([f"--{key}", *(shlex.quote(str(word)) for word in words)])


def toml_line(key: str, value: Any) -> str:
    return f"{_key(key)} = {toml_value(value)}"


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key)


def toml_value(value: Any) -> str:
    """A value as it is typed in a TOML: paths and words in quotes, lists in brackets."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, str):
        plain = value.isprintable() and "'" not in value
        return f"'{value}'" if ("\\" in value or '"' in value) and plain else json.dumps(value, ensure_ascii=False)
    return str(value)
