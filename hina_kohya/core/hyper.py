"""One declaration of a hyperparameter: default, bounds and meaning, from which check, help and docs follow."""

import dataclasses as dc
import inspect
import math
import re
from typing import Any


@dc.dataclass(frozen=True)
class Interval:
    """An interval in the usual notation, such as ``[0, 1)`` or ``(0, inf]``."""

    text: str

    def __contains__(self, value: float) -> bool:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        above = value >= low if self.text[0] == "[" else value > low
        below = value <= high if self.text[-1] == "]" else value < high
        return above and below


def hyper(default: Any, interval: str | None = None, *, doc: str) -> Any:
    """A dataclass field that knows its bounds. ``interval`` is for numbers; booleans and strings need none."""
    return dc.field(default=default, metadata={"interval": interval and Interval(interval), "doc": doc})


def check(owner: Any, prefix: str = "") -> None:
    """Raises one ValueError that names the first bad value, its bounds and the default to fall back on."""
    for field in dc.fields(owner):
        if "doc" in field.metadata:
            check_value(f"{prefix}{field.name}", getattr(owner, field.name), field.default, field.metadata["interval"])


def check_value(name: str, value: Any, default: Any, interval: Interval | None) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{name} = {value!r} is not a yes or no; write {name}=True or {name}=False")
        return
    if interval is None or (value is None and default is None):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        hint = " (a trailing comma makes a tuple)" if isinstance(value, tuple) else ""
        raise ValueError(f"{name} = {value!r} is not a number{hint}; the default is {default}")
    if value not in interval:
        raise ValueError(f"{name} = {value!r} is outside {interval.text}; the default is {default}")


def first_sentence(cls: type) -> str:
    """What a class is in one sentence, whole, over as many lines as it has."""
    paragraph = " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0]
