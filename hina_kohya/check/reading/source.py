"""What a user gave, as options of a trainer, without defaults."""

import dataclasses as dc
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hina_kohya.check import placeholders
from hina_kohya.check.reading import arguments
from hina_kohya.check.reading.load import load
from hina_kohya.check.schema import Option
from hina_kohya.trainers.errors import UserError

COMMAND_LINE = "the command line"


class Form(enum.Enum):
    TOML = "a training TOML"
    COMMAND = "a command line"
    SCRIPT = "a script with a command line"
    KOHYA_SS = "a file of the kohya_ss GUI"
    DATASETS = "a file for dataset_config"


@dc.dataclass(frozen=True)
class Unseen:
    """Something that was not looked at, and why."""

    what: str
    why: str


@dc.dataclass(frozen=True)
class Source:
    """
    name    : what a message calls it: the file, or the command line
    values  : of a TOML, with nothing converted; the command line on top, converted
    sections: where a value of the TOML comes from, "" outside any section
    repeated: keys that several sections give, with their values in their order
    words   : of the command line, not read yet: which options there are depends on the trainer
    typed   : keys that the command line gave
    refused : of those, why argparse would refuse a value (which is then the text, as typed)
    stray   : words that belong to no option
    broken  : why the command ends earlier than it was meant to
    mentions: scripts that the text names, as in a comment that says how to start it
    script  : the script that the command starts, "" if there is none
    launched: the command starts it with the hooks installed
    dropped : options whose 0 a GUI leaves out, although the trainer's default is another
    unseen  : what was not looked at
    tables  : what the dataset file holds, None where there is none that can be read; tables_file: that file
    """

    form: Form
    name: str
    file: Path | None
    values: Mapping[str, Any]
    sections: Mapping[str, str] = dc.field(default_factory=dict)
    repeated: Mapping[str, list[Any]] = dc.field(default_factory=dict)
    words: tuple[str, ...] = ()
    typed: frozenset[str] = frozenset()
    refused: Mapping[str, str] = dc.field(default_factory=dict)
    stray: tuple[str, ...] = ()
    broken: str = ""
    mentions: tuple[str, ...] = ()
    script: str = ""
    launched: bool = False
    dropped: tuple[str, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    tables: Mapping[str, Any] | None = None
    tables_file: Path | None = None

    def parsed(self, options: Mapping[str, Option]) -> "Source":
        """The same with its words read as argparse does with these options."""
        if not self.words:
            return self
        command = arguments.parse(self.words, options)
        return dc.replace(
            self,
            values={**self.values, **command.values},
            typed=frozenset(command.values),
            refused=command.refused,
            stray=command.stray,
            repeated={**self.repeated, **command.repeated},
            unseen=(*self.unseen, *(Unseen(*pair) for pair in command.unknown)),
        )

    @property
    def unseen_options(self) -> set[str]:
        """Options that are given, with a value that is not known."""
        words = (each.what.split(" ", 1)[0] for each in self.unseen)
        return {word.removeprefix("--") for word in words if word.startswith("--")}

    @property
    def has_unseen_words(self) -> bool:
        """Whether a variable may hold further options."""
        return any(each.what.startswith(("$", "%")) for each in self.unseen)

    def with_tables(self, dataset_config: Any) -> "Source":
        """The same with its dataset file read, if there is one that can be."""
        if self.tables is not None or not isinstance(dataset_config, str) or not dataset_config:
            return self
        file = Path(dataset_config)
        if placeholders.is_one(dataset_config) or not file.is_file() or file.suffix.lower() not in (".toml", ".json"):
            return self
        try:
            return dc.replace(self, tables=load(file), tables_file=file)
        except UserError:  # the rule about the file says why
            return self

    def followed_by(self, words: Sequence[str]) -> "Source":
        """The same with further words of the command line, which win."""
        return dc.replace(self, words=(*self.words, *words))
