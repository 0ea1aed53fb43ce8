"""The patch files that come with the package: what each is for, and how its result is recognised."""

import dataclasses as dc
import functools
import hashlib
from pathlib import Path

import toml

from hina_kohya.patch import newlines, unified
from hina_kohya.patch.targets import LYCORIS, SD_SCRIPTS

FOLDERS = {LYCORIS: "lycoris-lora", SD_SCRIPTS: "sd-scripts"}
OURS = b"hina_kohya"  # in no published file, and in every file with a patch or a part of one
_PACKAGED = Path(__file__).parents[1] / "patches"
_CHECKOUT = Path(__file__).parents[2] / "patches"


@dc.dataclass(frozen=True)
class Known:
    """One published content of a file, and the patch for it.

    file      : path in the target's root
    covered   : name of the range, which is the folder's
    versions  : releases that have this content
    everything: no version of the target has another content
    newline   : line endings as published; `before` and `after` are sha256 of the bytes with these
    """

    file: str
    covered: str
    versions: tuple[str, ...]
    everything: bool
    newline: str
    before: str
    after: str
    folder: Path

    @property
    def patch(self) -> str:
        return (self.folder / f"{Path(self.file).name}.patch").read_text(encoding="utf-8")

    @property
    def hashes(self) -> list[str]:
        """`line_hash` of every line of the published file."""
        return unified.lines_of((self.folder / f"{Path(self.file).name}.lines").read_text(encoding="utf-8"))

    @property
    def patched_hashes(self) -> list[str]:
        return unified.apply(self.patch, self.hashes, key=line_hash)

    def is_before(self, data: bytes) -> bool:
        return self._sha256(data) == self.before

    def is_after(self, data: bytes) -> bool:
        return self._sha256(data) == self.after

    def _sha256(self, data: bytes) -> str:
        """Of the published bytes, whichever of the two line endings the data has."""
        return hashlib.sha256(newlines.from_lf(newlines.to_lf(data), self.newline)).hexdigest()


@functools.cache
def known(target: str) -> tuple[Known, ...]:
    folder = (_PACKAGED if _PACKAGED.is_dir() else _CHECKOUT) / FOLDERS[target]
    content = toml.load(folder / "manifest.toml")
    return tuple(
        Known(
            content["file"],
            row["range"],
            tuple(row["versions"]),
            row.get("everything", False),
            row["newline"],
            row["before"],
            row["after"],
            folder / row["range"],
        )
        for row in content["patch"]
    )


def line_hash(line: str) -> str:
    """Enough to name a line that was changed, without shipping the lines."""
    return hashlib.sha256(line.encode("utf-8", "surrogateescape")).hexdigest()[:8]
