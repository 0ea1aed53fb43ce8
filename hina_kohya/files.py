"""Files appear whole or not at all: written beside their place, then moved into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_unfinished(path: Path) -> bool:
    """Whether a path is one that `atomic` hands out in this process."""
    return path.name.startswith(".") and path.stem.endswith(f".{os.getpid()}")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a path of the same suffix to write to; it takes the place of `path` if the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
