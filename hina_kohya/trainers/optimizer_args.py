"""`--optimizer_args` as they were meant: a superset of what sd-scripts' own parser reads."""

import ast
import re
from collections.abc import Sequence
from typing import Any

from hina_kohya.trainers.errors import UserError

_NAME = r"[A-Za-z_][\w.]*"
_CONSTANTS = {"true": True, "false": False, "none": None}
_RESERVED = {"lr": "learning_rate", "params": None}


def parse(words: Sequence[str] | str | None, option: str = "optimizer_args") -> dict[str, Any]:
    """`name=value` words as keyword arguments.

    Values are Python literals, or bare words: `true`, `fp32`, `a=b`. Read as meant: a list given as one string, spaces
    around `=` and within brackets, quotes around a whole word, a comma after it. Raises UserError for the rest, with
    the line to type instead.
    """
    arguments: dict[str, Any] = {}
    for item in _items(words, option):
        name, _, text = (part.strip() for part in item.partition("="))
        if name in _RESERVED:
            raise UserError(
                f"{option}: {name} is not given here" + (f"; use --{_RESERVED[name]}" * bool(_RESERVED[name]))
            )
        if name in arguments:
            raise UserError(f"{option}: {name} is given twice; keep one")
        arguments[name] = _value(name, text, option)
    return arguments


def _items(words: Sequence[str] | str | None, option: str) -> list[str]:
    """One string `name=value` an argument: words that belong together are joined again."""
    words = words.split() if isinstance(words, str) else list(words or ())
    items: list[str] = []
    for number, given in enumerate(words):
        if not isinstance(given, str):
            raise UserError(f'{option}: {given!r} is not a string; write "name={given}"')
        word = _unquoted(given.strip())
        following = words[number + 1] if number + 1 < len(words) else ""
        begins = re.match(rf"{_NAME}\s*=(?!=)", word) or (
            re.fullmatch(_NAME, word) and str(following).lstrip().startswith("=")
        )
        if items and _open(items[-1]) and not (begins and items[-1].endswith(",") and not _depth(items[-1])):
            items[-1] += f" {word}"
        elif begins:
            items.append(word)
        elif word.strip(","):
            raise UserError(f"{option}: {given!r} is not name=value; write {_corrected(word)}")
    return items


def _unquoted(word: str) -> str:
    """Windows' shell leaves single quotes around a word."""
    return word[1:-1] if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"" and "=" in word else word


def _open(item: str) -> bool:
    return "=" not in item or item.endswith(("=", ",")) or _depth(item) > 0


def _depth(text: str) -> int:
    return sum(text.count(each) for each in "([{") - sum(text.count(each) for each in ")]}")


def _corrected(word: str) -> str:
    name, equals, value = word.lstrip("-").partition("=")
    name = re.sub(r"[^\w.]+", "_", name.strip()).strip("_")
    return f"{name}={value.strip()}" if equals else f"{name}=True, or a value after the ="


def _value(name: str, text: str, option: str) -> Any:
    text = text.removesuffix(",").rstrip()
    if not text:
        raise UserError(f"{option}: {name} has no value; write {name}=True, or a value after the =")
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    if depth := _depth(text):
        fix = text + ")" * depth if depth > 0 else text.rstrip(")]}")
        raise UserError(f"{option}: the brackets of {name}={text} do not match; write {name}={fix}")
    if text[0] in "'\"([{":
        raise UserError(f"{option}: {name}={text} cannot be read; write {name}=0.1, {name}=(0.9, 0.99) or {name}=word")
    if re.match(r"[-+.]?\d", text) and not re.fullmatch(r"\w+", text):
        ratio = re.fullmatch(r"([\d.]+)\s*/\s*([\d.]+)", text)
        fix = f"{float(ratio[1]) / float(ratio[2]):.6g}" if ratio else "0.1"
        raise UserError(f"{option}: {text!r} of {name} is not a number; write {name}={fix}")
    return text
