"""How near two names have to be for one to be meant by the other: a line is printed of it, and not a question asked."""

from difflib import SequenceMatcher

_ALIKE = 0.8


def alike(word: str, name: str) -> bool:
    """A slip of the hand, and no other word: `rank_dropout_scale` is not `rank_dropout`."""
    return SequenceMatcher(None, word.lower(), name.lower()).ratio() > _ALIKE
