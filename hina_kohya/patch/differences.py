"""Which lines of a file are not as published, found from the hashes of the published lines."""

from difflib import SequenceMatcher

from hina_kohya.patch import newlines
from hina_kohya.patch.manifest import line_hash
from hina_kohya.patch.unified import lines_of


def differences(data: bytes, published: list[str]) -> tuple[str, ...]:
    """One line of text for every line added, changed or missing; quoted, so that blanks and tabs show."""
    if newlines.style(data) == newlines.MIXED:
        odd = newlines.odd_lines(data)
        return (f"line endings are mixed: {_some(odd)} not end as the rest",)
    text = newlines.to_lf(data).decode("utf-8", "surrogateescape")
    lines = lines_of(text)
    found: list[str] = []
    matcher = SequenceMatcher(None, published, [line_hash(line) for line in lines], autojunk=False)
    for kind, first, last, begin, end in matcher.get_opcodes():
        if kind == "equal":
            continue
        if kind == "insert":
            found.append(f"added after published line {first}:" if first else "added at the start:")
        elif kind == "delete":
            found.append(f"published {_span(first, last)} missing after line {begin}")
        else:
            found.append(f"published {_span(first, last)} replaced by:")
        found += [f"  {number + 1}: {lines[number]!a}" for number in range(begin, end)]
    if text and not text.endswith("\n"):
        found.append(f"line {len(lines)} has no line ending")
    return tuple(found)


def _span(first: int, last: int) -> str:
    return f"line {last} is" if last == first + 1 else f"lines {first + 1} to {last} are"


def _some(numbers: list[int], most: int = 10) -> str:
    names = ", ".join(map(str, numbers[:most])) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")
    return f"line {names} does" if len(numbers) == 1 else f"lines {names} do"
