"""Unified diffs, applied exactly: a context line that differs is an error, and nothing is searched for nearby.

`whatthepatch` was tried: it skips the context of a hunk headed `@@ -3 +3,5 @@` and loses the last line's ending.
"""

import re
from collections.abc import Callable

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")


class DoesNotApply(ValueError):
    """The diff and the lines it is for do not fit."""


def lines_of(text: str) -> list[str]:
    """Lines without their endings. Only a newline ends a line: str.splitlines knows seven more characters."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def apply(diff: str, lines: list[str], reverse: bool = False, key: Callable[[str], str] = str) -> list[str]:
    """The lines after the diff, or before it. `key` is what `lines` holds of each line, for example its hash."""
    removes, adds = ("+", "-") if reverse else ("-", "+")
    result: list[str] = []
    position = 0
    for start, length, body in _hunks(diff, reverse):
        begin = start - 1 if length else start  # a hunk that takes no lines names the one before it
        result += lines[position:begin]
        position = begin
        for sign, line in body:
            if sign in (" ", removes):
                if lines[position : position + 1] != [key(line)]:
                    raise DoesNotApply(f"line {position + 1} is not {line!r}")
                position += 1
            if sign in (" ", adds):
                result.append(key(line))
    return result + lines[position:]


def _hunks(diff: str, reverse: bool) -> list[tuple[int, int, list[tuple[str, str]]]]:
    """(first line, number of lines, [(sign, line)]) of each hunk, on the side that is there."""
    hunks: list[tuple[int, int, list[tuple[str, str]]]] = []
    for line in lines_of(diff):
        if header := _HUNK.match(line):
            start, length = header.group(3, 4) if reverse else header.group(1, 2)
            hunks.append((int(start), int(length or 1), []))
        elif hunks:
            hunks[-1][2].append((line[:1], line[1:]))
    return hunks
