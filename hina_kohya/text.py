"""Words that people type: sizes as bytes, and in messages the nearest known name, or all where none is near."""

import difflib
import re
from collections.abc import Iterable

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(text: str) -> int | None:
    """Bytes of "20MB", "19MiB", "20M" or "20000000"; None for what is no size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b?)", text.strip(), re.IGNORECASE)
    unit = match[2].upper() if match else "?"
    if unit[:1] in ("K", "M", "G") and not unit.endswith("B"):
        unit += "B"
    return int(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else None


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known names like `name`: those that contain it, else those spelt alike; letter case is forgiven."""
    by_lower = {each.lower(): each for each in sorted(known)}
    containing = sorted((each for lower, each in by_lower.items() if name and name.lower() in lower), key=len)
    return containing[:3] or [by_lower[each] for each in difflib.get_close_matches(name.lower(), by_lower, n=3)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, or all of them when none is near."""
    known = sorted(known)
    near = nearest(name, known)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
