"""Our lines in somebody else's file: put at its end, and taken out again so that every byte is as it was."""

import difflib
import functools
import re
from pathlib import Path

import toml

_PACKAGED = Path(__file__).parents[1] / "patches"
_PATCHES = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "patches"
_OURS = re.compile(rb"hina[-_]kohya")  # in no published file, and in the first and last line of every block


@functools.cache
def blocks(target: str) -> tuple[bytes, ...]:
    """The lines that apply puts in, and then those of earlier releases, which revert must know. LF ends them."""
    files = (_PATCHES / f"{target}.block", _PATCHES / "earlier" / f"{target}.block")
    return tuple(file.read_text(encoding="utf-8").encode() for file in files if file.is_file())


@functools.cache
def tried(target: str) -> tuple[str, ...]:
    """The releases that the patch was tried on, oldest first: numbers of LyCORIS, starts of commits of sd-scripts."""
    releases = toml.load(_PATCHES / "tried.toml")[target]
    return tuple(releases.values() if isinstance(releases, dict) else releases)


def put_in(data: bytes, block: bytes) -> bytes:
    """The data, two line endings and a block, both as the data ends its last line; an empty file needs no gap."""
    end = data.rfind(b"\n")
    newline = b"\r\n" if end > 0 and data[end - 1 : end] == b"\r" else b"\n"
    return data + (newline * 2 if data else b"") + block.replace(b"\n", newline)


def take_out(data: bytes, block: bytes) -> bytes | None:
    """The data before `put_in`; None where they are not what put_in has made."""
    for newline in (b"\n", b"\r\n"):
        lines = block.replace(b"\n", newline)
        for added in (newline * 2 + lines, lines):
            before = data.removesuffix(added)
            if put_in(before, block) == data:
                return before
    return None


def lines_of_ours(data: bytes) -> tuple[str, ...]:
    """Every line that names this package, with its number; quoted, so that blanks and tabs show."""
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if _OURS.search(line)]
    return tuple(f"{number}: {line.decode('utf-8', 'surrogateescape')!a}" for number, line in lines)


def diff(before: bytes, after: bytes, name: str) -> str:
    """A unified diff that `git apply` takes, line endings included."""
    old, new = (re.findall(r"[^\n]*\n|[^\n]+", data.decode()) for data in (before, after))
    lines = difflib.unified_diff(old, new, f"a/{name}", f"b/{name}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
