"""Folders appear whole or not at all, as files do; whether a folder can be written to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def writable(folder: Path) -> str:
    """Why nothing can be written into a folder, found out by writing; "" where it can. Makes the folder."""
    probe = folder / f".{os.getpid()}.probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """`hina_kohya.files.atomic` for a folder, which cannot be replaced in one move: the old one steps aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("new", "old"))
    try:
        unfinished.mkdir()
        yield unfinished
        if path.exists():
            os.replace(path, old)
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
