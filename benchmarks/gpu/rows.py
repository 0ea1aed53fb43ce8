"""A row of the table, and how a part makes rows that survive an error."""

import dataclasses as dc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Figures = dict[str, Any]


@dc.dataclass(frozen=True)
class Plan:
    """Where and how much. ``quick`` is for trying the benchmark itself: its figures mean nothing."""

    device: torch.device
    quick: bool = False

    def of(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full


@dc.dataclass(frozen=True)
class Row:
    """``text`` says the figures in words; ``error`` says why there are none."""

    part: str
    what: str
    text: str = ""
    error: str = ""
    figures: Figures = dc.field(default_factory=dict)


@dc.dataclass(frozen=True)
class Part:
    """``run`` yields rows; a process of its own runs it for at most ``seconds``."""

    name: str
    about: str
    seconds: int
    run: Callable[[Plan], Iterator[Row]]


def attempt(part: str, what: str, measure: Callable[[], tuple[str, Figures]]) -> Row:
    """One row, with the error in it if there is one. A GPU out of memory is given back what is free."""
    try:
        text, figures = measure()
    except Exception as error:  # of any library, on hardware nobody here has: the row says it, the others go on
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Row(part, what, error=short(error))
    return Row(part, what, text, figures=figures)


def short(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}".strip(": ")


def append(file: Path, row: Row) -> None:
    """At once, so that a part that dies later keeps it."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(dc.asdict(row)) + "\n")


def read(file: Path) -> list[Row]:
    """Whole lines only: a part may have died within one."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [Row(**json.loads(line)) for line in text.split("\n")[:-1]]
