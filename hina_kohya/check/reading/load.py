"""Files of tables, TOML and JSON, by the same reader as the trainers'."""

import json
from pathlib import Path
from typing import Any

import toml

from hina_kohya.check.reading.text import smart_quotes, text_of
from hina_kohya.trainers.errors import UserError

_HINTS = {
    "escape": "write paths in single quotes, or with forward slashes",
    "homogeneous": "write the numbers of a list alike: [1e-4, 0.0]",
    "leading digit": "write 0.5 and not .5, and words in quotes",
    "lowercase booleans": "write true and false in small letters",
    "date or number": "write true and false in small letters, and words in quotes",
    "already exists": "a section may come once",
    "Duplicate keys": "keep one of the two lines",
    "Key name found without value": "write name = value; words of a command line belong into a .sh or .bat file",
}
_DEEPEST = 40  # levels of tables; a run has two
# What the reader of TOML raises where it trips over a mistake, besides its own error.
_TRIPS = (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError, UnicodeError)


def load(file: Path) -> dict[str, Any]:
    """What trainers refuse is refused. Raises UserError."""
    return loads(text_of(file), file)


def loads(text: str, file: Path) -> dict[str, Any]:
    is_json = file.name.lower().endswith(".json")
    try:
        content = json.loads(text.removeprefix("\ufeff")) if is_json else toml.loads(text)
    except (*_TRIPS, toml.TomlDecodeError) as error:
        raise UserError(f"{file} is not valid: {_why(text, error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__} and no table of keys and values")
    if _is_deeper_than(content, _DEEPEST):
        raise UserError(f"{file} is not valid: it is nested too deeply")
    return content


def _is_deeper_than(content: Any, levels: int) -> bool:
    """Level by level: values that go deeper than Python's own limit would end in a RecursionError elsewhere."""
    level = [content]
    for _ in range(levels):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def _why(text: str, error: Exception) -> str:
    if place := smart_quotes(text):
        return f"{place}: these quotes are a word processor's; write plain ones, \" or '"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    hint = next((f"; {hint}" for words, hint in _HINTS.items() if words.lower() in str(error).lower()), "")
    return f"{error}{hint}"
