"""What a rule has to say: one mistake, why it is one, and the line to type instead."""

import dataclasses as dc
import enum


class Level(enum.Enum):
    ERROR = "error"  # training would fail, or silently do something else
    WARNING = "warning"  # it runs, and is probably not what was meant


@dc.dataclass(frozen=True)
class Finding:
    """key: the option it is about; what: what happens; evidence: how we know; write: what to type; rule: who says so"""

    level: Level
    key: str
    what: str
    evidence: str
    write: str = ""
    rule: str = ""


def error(key: str, what: str, evidence: str, write: str = "") -> Finding:
    return Finding(Level.ERROR, key, what, evidence, write)


def warning(key: str, what: str, evidence: str, write: str = "") -> Finding:
    return Finding(Level.WARNING, key, what, evidence, write)
