"""Whatever a user has of a run, as one `Source`: a TOML, a command line, a script with one, a kohya_ss JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hina_kohya.check.reading import command, foreign, kohya_ss, tables
from hina_kohya.check.reading.load import loads
from hina_kohya.check.reading.shells import OF_ENDING
from hina_kohya.check.reading.source import Form, Source
from hina_kohya.check.reading.text import text_of
from hina_kohya.check.schema import Schema, every_option
from hina_kohya.trainers.checkouts import TRAINERS
from hina_kohya.trainers.errors import UserError


def read(words: Sequence[str]) -> Source:
    """`words`: the name of a file, or a command line. Raises UserError for what no trainer reads."""
    first, *rest = words
    if rest or command.is_command(first):
        return command.of_words(words)
    file = _file(first)
    if file.suffix.lower() in OF_ENDING:
        return command.of_script(file)
    text = text_of(file)
    if file.suffix.lower() in (".yaml", ".yml"):
        raise UserError(f"{file} is {foreign.name_of_yaml(text)}")
    content = loads(text, file)
    if kohya_ss.is_one(content):
        return kohya_ss.source_of(content, file)
    if is_dataset(content):
        return Source(Form.DATASETS, str(file), file, {}, tables=content, tables_file=file)
    if what := foreign.name_of(content):
        raise UserError(f"{file} is {what}")
    if file.suffix.lower() == ".json":
        raise UserError(f"{file} is JSON, which trainers read for datasets only; write the run's options as TOML")
    return tables.source_of(content, text, file)


def is_dataset(content: Mapping[str, Any]) -> bool:
    """Whether a file has the tables of one for dataset_config, and no option of a run but those that both have."""
    rest = {key: value for key, value in content.items() if key not in ("general", "datasets")}
    keys = {name for key, each in rest.items() for name in (each if isinstance(each, dict) else (key,))}
    options = {name for trainer in TRAINERS for name in every_option(trainer)}
    common = {name for trainer in TRAINERS for table in Schema(trainer).datasets.values() for name in table}
    return isinstance(content.get("datasets"), list) and not keys & (options - common)


def _file(path: str) -> Path:
    file = Path(path)
    endings = (".toml", ".json", ".yaml", ".yml", *OF_ENDING)
    return file if file.suffix.lower() in endings or file.is_file() else command.toml_file(path)
