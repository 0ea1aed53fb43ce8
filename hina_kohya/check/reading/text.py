"""The text of a file as its reader will see it, or in words why it cannot be read."""

import re
from pathlib import Path

from hina_kohya.trainers.errors import UserError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# Quotes of word processors, low, high and wide, and the space that does not break.
SMART = str.maketrans("\u201c\u201d\u201e\uff02\u2018\u2019\u00a0", '""""\'\' ')
_SMART = re.compile("|".join(map(re.escape, map(chr, SMART))))


def text_of(file: Path, forgiving: bool = False) -> str:
    """UTF-8, with its byte-order mark, if it has one, as trainers have it, too.

    forgiving: a script of a shell, whose comments may be in any encoding; a byte-order mark does not matter there

    Raises UserError.
    """
    try:
        content = file.read_bytes()
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise UserError(f"cannot read {str(file)!r}: {getattr(error, 'strerror', None) or error}") from error
    if content.startswith(_UTF_16) or content[1:40:2].count(0) > 10:
        if not forgiving:
            raise UserError(f"{file} is UTF-16, as PowerShell's > and Windows' Notepad may write it; save it as UTF-8")
        return content.decode("utf-16", errors="replace")
    try:
        text = content.decode("utf-8-sig" if forgiving else "utf-8")
    except UnicodeDecodeError as error:
        if not forgiving:
            line = content[: error.start].count(b"\n") + 1
            raise UserError(f"{file} is not UTF-8 (line {line}); save it as UTF-8") from error
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n")


def smart_quotes(text: str) -> str:
    """Where a word processor's quotes stand in the place of plain ones: `line 3: name = “x”`; empty if nowhere."""
    for number, line in enumerate(text.splitlines(), 1):
        if _SMART.search(line.partition("#")[0]):
            return f"line {number}: {line.strip()[:60]}"
    return ""
