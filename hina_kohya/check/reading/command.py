"""A command line that starts a trainer: `accelerate launch sdxl_train_network.py --flag ...`."""

import dataclasses as dc
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hina_kohya.check.reading import tables
from hina_kohya.check.reading.arguments import UNKNOWN
from hina_kohya.check.reading.load import loads
from hina_kohya.check.reading.scripts import Command, commands_of
from hina_kohya.check.reading.shells import OF_ENDING
from hina_kohya.check.reading.source import COMMAND_LINE, Form, Source, Unseen
from hina_kohya.check.reading.text import SMART, text_of
from hina_kohya.check.schema import Schema
from hina_kohya.trainers.checkouts import TRAINERS
from hina_kohya.trainers.errors import UserError

_LAUNCHERS = ("accelerate", "python", "python3", "torchrun", "deepspeed", "uv", "poetry", "conda", "hina-kohya")
_MODULE = "hina_kohya.launch"
EXAMPLE = "hina-kohya check accelerate launch sdxl_train_network.py --network_module lycoris.kohya ..."


def is_command(word: str) -> bool:
    """Whether a command line begins with this word, and not the name of a file to check."""
    name = _name(word)
    return name.removesuffix(".exe") in _LAUNCHERS or name.startswith("python") or name.endswith(".py")


def of_words(words: Sequence[str]) -> Source:
    """Raises UserError where no trainer of adapters is started."""
    return _of(Form.COMMAND, COMMAND_LINE, None, tuple(words))


def of_script(file: Path) -> Source:
    """Of the first command in a shell's script that starts a trainer. Raises UserError."""
    text = text_of(file, forgiving=True)
    commands = commands_of(text.translate(SMART) if file.suffix == ".ps1" else text, OF_ENDING[file.suffix.lower()])
    runs = [command for command in commands if _position(command.words) is not None]
    if not runs:
        raise UserError(f"{file} starts no *train_network.py in a line that can be read; pass its words: {EXAMPLE}")
    command, *others = runs
    source = _of(Form.SCRIPT, f"{file} line {command.line}", file, command.words)
    unseen = (*source.unseen, *_not_looked_at(command, others))
    return dc.replace(source, broken=command.broken, unseen=unseen)


def _not_looked_at(command: Command, others: Sequence[Command]) -> tuple[Unseen, ...]:
    notes = [Unseen(f"line {command.line}", "it stands in a condition or a loop")] if command.conditional else []
    notes += [Unseen(f"line {each.line}", "it starts another run; check it by itself") for each in others[:3]]
    return tuple(notes)


def _of(form: Form, name: str, file: Path | None, words: tuple[str, ...]) -> Source:
    position = _position(words)
    if position is None:
        raise UserError(f"no trainer is started here; example: {EXAMPLE}")
    script, before, after = _name(words[position]), words[:position], words[position + 1 :]
    if not any(script in Schema(trainer).scripts or Path(script).match(trainer.scripts) for trainer in TRAINERS):
        raise UserError(f"{script} trains no adapter, and hina-kohya checks *train_network.py only")
    launched = _MODULE in before or [_name(word) for word in before[:2]] == ["hina-kohya", "launch"]
    base = _config_file(after)
    values, sections, repeated = (base.values, base.sections, base.repeated) if base else ({}, {}, {})
    return Source(form, name, file, values, sections, repeated, after, script=script, launched=launched)


def _position(words: Sequence[str]) -> int | None:
    """Where the trainer's script stands among the words."""
    for number, word in enumerate(words):
        if re.fullmatch(r"\w*train\w*\.py", _name(word)) and not word.startswith("-"):
            return number
    return None


def _config_file(words: Sequence[str]) -> Source | None:
    """The TOML under the words, if they name one that can be had."""
    paths = [following for word, following in pairwise(words) if word == "--config_file"]
    paths += [word.partition("=")[2] for word in words if word.startswith("--config_file=")]
    if not paths or UNKNOWN.search(paths[-1]):
        return None
    file = toml_file(paths[-1])
    text = text_of(file)
    return tables.source_of(loads(text, file), text, file)


def toml_file(path: str) -> Path:
    """Trainers add the ending."""
    return Path(path if path.endswith(".toml") else f"{path}.toml")


def _name(word: str) -> str:
    return word.replace("\\", "/").rpartition("/")[2]
