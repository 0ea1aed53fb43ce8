"""What `hina-kohya adlrns run` leaves in its folder: the numbers, and their table."""

import json
from pathlib import Path
from typing import Any

from hina_kohya.files import atomic


def write(folder: Path, numbers: Any, table: str) -> None:
    """results.json and results.md. Raises OSError."""
    for name, text in (("results.json", json.dumps(numbers, indent=1)), ("results.md", table)):
        with atomic(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
