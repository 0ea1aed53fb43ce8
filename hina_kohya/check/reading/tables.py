"""A training TOML as trainers read it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hina_kohya.check.reading.source import Form, Source

_SCRIPT = re.compile(r"\b\w*train\w*\.py\b")


def source_of(content: Mapping[str, Any], text: str, file: Path) -> Source:
    """A training TOML as trainers' `read_config_from_file` has it: sections flattened one level, nothing converted."""
    values: dict[str, Any] = {}
    sections: dict[str, str] = {}
    repeated: dict[str, list[Any]] = {}
    for name, entry in content.items():
        table, section = (entry, name) if isinstance(entry, dict) else ({name: entry}, "")
        for key, value in table.items():
            if key in values:
                repeated.setdefault(key, [values[key]]).append(value)
            values[key], sections[key] = value, section
    mentions = tuple(dict.fromkeys(_SCRIPT.findall(text)))
    return Source(Form.TOML, str(file), file, values, sections, repeated, mentions=mentions)
