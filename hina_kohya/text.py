"""Names in messages: the nearest known one, and all of them where none is near."""

import difflib
from collections.abc import Iterable


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
