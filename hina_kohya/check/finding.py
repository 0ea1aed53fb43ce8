"""What a rule has to say: one mistake, why it is one, and how to mend it."""

import dataclasses as dc
import enum

from hina_kohya.check.edit import Edit


class Level(enum.Enum):
    ERROR = "error"  # the run stops, or silently does something else
    WARNING = "warning"  # it runs, and is probably not what was meant
    MISSING = "missing here"  # no fault of the configuration: something is not installed in this environment
    NOTE = "note"  # harmless
    NOT_LOOKED_AT = "not looked at"

    @property
    def rank(self) -> int:
        return list(Level).index(self)


@dc.dataclass(frozen=True)
class Finding:
    """
    key     : the option that it is about
    what    : what happens
    evidence: how we know
    edit    : what mends it. Only one that was tried is printed (`mending`)
    advice  : what mends it, where no line of the configuration does
    rule    : who says so
    """

    level: Level
    key: str
    what: str
    evidence: str = ""
    edit: Edit | None = None
    advice: str = ""
    rule: str = ""

    @property
    def identity(self) -> tuple[Level, str, str, str]:
        """What makes two findings of two configurations the same."""
        return self.level, self.rule, self.key, self.what


def error(key: str, what: str, evidence: str, edit: Edit | None = None, advice: str = "") -> Finding:
    return Finding(Level.ERROR, key, what, evidence, edit, advice)


def warning(key: str, what: str, evidence: str, edit: Edit | None = None, advice: str = "") -> Finding:
    return Finding(Level.WARNING, key, what, evidence, edit, advice)


def missing(key: str, what: str, evidence: str, advice: str) -> Finding:
    """Something that this environment lacks."""
    return Finding(Level.MISSING, key, what, evidence, advice=advice)


def note(key: str, what: str, evidence: str = "", edit: Edit | None = None) -> Finding:
    return Finding(Level.NOTE, key, what, evidence, edit)


def not_looked_at(key: str, why: str, advice: str = "") -> Finding:
    return Finding(Level.NOT_LOOKED_AT, key, why, advice=advice)
