"""A command line as argparse reads it, all of it: one refused word does not hide the rest."""

import dataclasses as dc
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hina_kohya.check.schema import Option

# A variable of a shell whose value nobody knows, as `reading.shells` leaves it in a word.
UNKNOWN = re.compile("\0([^\0]*)\0")
_NUMBER = re.compile(r"-\d+$|-\d*\.\d+$")  # argparse's own: -1e-5 is no number to it


@dc.dataclass
class Arguments:
    """values: as converted, text where that fails; refused: key -> why; stray: words that belong to no option

    unknown: (what, why) of words with a variable whose value is not known; they are in no other field.
    """

    values: dict[str, Any] = dc.field(default_factory=dict)
    refused: dict[str, str] = dc.field(default_factory=dict)
    repeated: dict[str, list[Any]] = dc.field(default_factory=dict)
    stray: tuple[str, ...] = ()
    unknown: tuple[tuple[str, str], ...] = ()

    def give(self, name: str, value: Any, reason: str = "") -> None:
        if name in self.values and self.values[name] != value:
            self.repeated.setdefault(name, [self.values[name]]).append(value)
        self.values[name] = value
        self.refused.pop(name, None)
        if reason:
            self.refused[name] = reason

    def lose(self, words: Sequence[str]) -> None:
        """Words that belong to no option."""
        self.stray += tuple(word for word in words if not UNKNOWN.search(word))
        self.unknown += tuple(_unknown(word, word) for word in words if UNKNOWN.search(word))


def parse(words: Sequence[str], options: Mapping[str, Option]) -> Arguments:
    flags = {flag: option for option in options.values() for flag in option.flags or (f"--{option.name}",)}
    arguments = Arguments()
    for word, following in _runs(words, flags):
        if word is None:
            arguments.lose(following)
            continue
        name, equals, text = word.partition("=")
        names = [name] if name in flags else [flag for flag in flags if flag.startswith(name) and name.startswith("--")]
        dests = {flags[flag].name for flag in names}
        if UNKNOWN.search(name):
            arguments.unknown += (_unknown(word, word),)
        elif len(dests) != 1:
            values = [text, *following] if equals else following
            what = f"ambiguous option {name}: {', '.join(names)}" if names else f"there is no option {name}"
            bare: Any = True if not values else values[0] if len(values) == 1 else values
            arguments.give(name.lstrip("-") if not names else name, bare, what)
        else:
            _take(flags[names[0]], [text, *following] if equals else following, bool(equals), arguments)
    return arguments


def _runs(words: Sequence[str], flags: Mapping[str, Option]) -> Iterator[tuple[str | None, list[str]]]:
    """Each option with the words that follow it; None for words before the first and after `--`."""
    option: str | None = None
    following: list[str] = []
    for number, word in enumerate(words):
        if word == "--":
            yield option, following
            yield None, list(words[number + 1 :])
            return
        if _begins(word, flags):
            yield option, following
            option, following = word, []
        else:
            following.append(word)
    yield option, following


def _begins(word: str, flags: Mapping[str, Option]) -> bool:
    """Whether argparse takes a word for an option."""
    if not word.startswith("-") or len(word) == 1 or _NUMBER.match(word):
        return False
    return word.partition("=")[0] in flags or " " not in word


def _take(option: Option, values: list[str], has_equals: bool, arguments: Arguments) -> None:
    name = option.name
    if option.type == "flag":
        arguments.give(name, not option.default, f"ignored explicit argument {values[0]!r}" if has_equals else "")
        arguments.lose(values[has_equals:])
        return
    head = values if option.list and not has_equals else values[:1]
    arguments.lose(values[len(head) :])
    values = head
    if any(UNKNOWN.search(value) for value in values):
        texts = [UNKNOWN.sub(r"$\1", value) for value in values]
        arguments.unknown += (_unknown(f"--{name} {' '.join(texts)}", " ".join(values)),)
        return
    if option.list:
        pairs = [_converted(option, value) for value in values]
        arguments.give(name, [value for value, _ in pairs], next((why for _, why in pairs if why), ""))
        return
    if not values:
        arguments.give(name, "", "expected one argument")
        return
    arguments.give(name, *_converted(option, values[0]))


def _converted(option: Option, text: str) -> tuple[Any, str]:
    """The value, and why argparse would refuse it; it is then the text."""
    try:
        value = CONVERTERS[option.type](text)
    except ValueError:
        kind = {"steps": "int_or_float"}.get(option.type, option.type)
        return text, f"invalid {kind} value: {text!r}"
    except OverflowError:
        return text, f"invalid value: {text!r}"
    if option.choices and value not in option.choices:
        return value, f"invalid choice: {value!r} (choose from {', '.join(map(repr, option.choices))})"
    return value, ""


def steps(text: str) -> int | float:
    """`--lr_warmup_steps` on the command line: `10%` and `0.1` are fractions of the run, the rest are steps."""
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return int(text) if float(text) >= 1 else float(text)


CONVERTERS = {"int": int, "float": float, "str": str, "steps": steps}


def _unknown(what: str, text: str) -> tuple[str, str]:
    names = ", ".join(dict.fromkeys(f"${name}" for name in UNKNOWN.findall(text)))
    return UNKNOWN.sub(r"$\1", what), f"the value of {names} is not known here"
