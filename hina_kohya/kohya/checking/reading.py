"""A training TOML and a command line as sd-scripts reads them (its `read_config_from_file`)."""

import dataclasses as dc
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import toml

from hina_kohya.kohya.checking.schema import Option, parser
from hina_kohya.trainers.errors import UserError

COMMAND_LINE = "the command line"
_HINTS = {
    "escape": "write paths in single quotes, or with forward slashes",
    "homogeneous": "write the numbers of a list alike: [1e-4, 0.0]",
    "leading digit": "write 0.5 and not .5, and words in quotes",
    "lowercase booleans": "write true and false in small letters",
    "date or number": "write true and false in small letters, and words in quotes",
    "already exists": "a section may come once",
    "Duplicate keys": "keep one of the two lines",
}


@dc.dataclass(frozen=True)
class Reading:
    """What was given, without defaults.

    values  : the TOML with its sections flattened one level and nothing converted; the command line on top
    sections: where a value of the TOML comes from, "" outside any section
    typed   : keys that the command line gave, converted by argparse
    repeated: keys that several sections give, with the values in their order
    refused : why argparse would refuse the command line, one a mistake
    scripts : the trainers that the file's text names, as in a comment that says how to start it
    """

    file: Path
    values: Mapping[str, Any]
    sections: Mapping[str, str]
    scripts: tuple[str, ...] = ()
    typed: frozenset[str] = frozenset()
    repeated: Mapping[str, list[Any]] = dc.field(default_factory=dict)
    refused: tuple[str, ...] = ()

    def over(self, words: Sequence[str], options: dict[str, Option]) -> "Reading":
        """The same with `words` of a command line, which wins."""
        try:
            given, unknown = parser(options).parse_known_args(list(words))
        except (UserError, ValueError) as mistake:
            return dc.replace(self, refused=(str(mistake),))
        typed = vars(given)
        refused = tuple(f"there is no option {word}" for word in unknown if word.startswith("-"))
        return dc.replace(self, values={**self.values, **typed}, typed=frozenset(typed), refused=refused)


def read_config(path: str) -> Reading:
    """Raises UserError where sd-scripts could not read the file either."""
    file = Path(path if path.endswith(".toml") else f"{path}.toml")
    values: dict[str, Any] = {}
    sections: dict[str, str] = {}
    repeated: dict[str, list[Any]] = {}
    for name, content in load(file).items():
        table, section = (content, name) if isinstance(content, dict) else ({name: content}, "")
        for key, value in table.items():
            if key in values:
                repeated.setdefault(key, [values[key]]).append(value)
            values[key], sections[key] = value, section
    named = re.findall(r"\b\w*train_network\.py\b", file.read_text(encoding="utf-8"))
    return Reading(file, values, sections, tuple(dict.fromkeys(named)), repeated=repeated)


def load(file: Path) -> dict[str, Any]:
    """A TOML (or, for datasets, JSON) file by the same reader as sd-scripts', so that what it refuses is refused."""
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.name.lower().endswith(".json") else toml.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8; save it as UTF-8") from error
    except (toml.TomlDecodeError, json.JSONDecodeError, IndexError) as error:  # the reader trips over some mistakes
        hint = next((f"; {hint}" for words, hint in _HINTS.items() if words.lower() in str(error).lower()), "")
        raise UserError(f"{file} is not valid: {error}{hint}") from error


def toml_line(key: str, value: Any) -> str:
    return f"{key} = {toml_value(value)}"


def toml_value(value: Any) -> str:
    """A value as it is typed in a TOML: paths and words in quotes, lists in brackets."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return f"'{value}'" if ("\\" in value or '"' in value) and "'" not in value else json.dumps(value)
    return str(value)


def relisted(key: str, words: Sequence[Any], old: str, new: str = "") -> str:
    """The line of a list option with one word changed, or left out."""
    kept = [new if word == old else word for word in words if word != old or new]
    return toml_line(key, kept)
