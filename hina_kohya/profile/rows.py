"""What a profile says: one row an optimizer, and for ours one row a technique; as text and as JSON."""

import dataclasses as dc
from typing import Any


@dc.dataclass(frozen=True)
class Counts:
    """Of one step. operations: what computes; launches: kernels; moved: bytes read and written if no cache held any."""

    operations: int
    launches: int
    moved: int


@dc.dataclass(frozen=True)
class Part:
    """A technique's share of a step, or the machine's.

    tensors    : how many parameters it acts on; None for the machine
    state_bytes: kept between steps
    ms, iqr    : median and middle half of its time in the steps, its codec's included
    codec_ms   : of that, reading and writing its state
    """

    name: str
    tensors: int | None
    state_bytes: int
    counts: Counts
    ms: float
    iqr: float
    codec_ms: float


@dc.dataclass(frozen=True)
class Row:
    """An optimizer's step.

    ms    : wall time, median and (iqr) middle half; cpu_ms: what the process's threads worked, which others leave alone
    counts: None where they cannot be known (compile=True)
    parts : of our optimizers, what acts, in the order of the step
    error : why it could not be stepped here; the other figures are then 0
    """

    name: str
    path: str
    state_bytes: int = 0
    counts: Counts | None = None
    ms: float = 0.0
    iqr: float = 0.0
    cpu_ms: float = 0.0
    parts: tuple[Part, ...] = ()
    error: str = ""


@dc.dataclass(frozen=True)
class Profile:
    """rows: the optimizers that were asked for, then those beside them; notes: what was said while they were made."""

    about: str
    parameters: int
    tensors: int
    shapes: int
    dtype: str
    device: str
    machine: str
    threads: int
    torch: str
    steps: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def row(self, name: str) -> Row:
        """By the name that it was asked for. Raises KeyError."""
        return {row.name: row for row in self.rows}[name]

    def as_json(self) -> dict[str, Any]:
        return dc.asdict(self)

    def text(self) -> str:
        """As tables of plain text."""
        ours = [row for row in self.rows if row.parts]
        lines = [
            f"{self.about}: {self.parameters:,} parameters in {self.tensors:,} tensors of {self.shapes:,} shapes, "
            f"{self.dtype}",
            f"{self.machine}; {self.device}, {_threads(self.threads)}, torch {self.torch}; median of {self.steps} "
            "steps, spread: their middle half",
            "",
            *_aligned([_HEADINGS, *(self._cells(row) for row in self.rows)]),
            *(f"{row.name}: could not be stepped here: {row.error}" for row in self.rows if row.error),
        ]
        for row in ours:
            parts = [_part(part, row) for part in row.parts]
            lines += ["", f"whose it is, {row.name}", *_aligned([_PART_HEADINGS, *parts])]
        if self.device == "cpu":
            lines += ["", "on a CPU each operation counts as a launch; a GPU takes larger pieces, so it launches less"]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _cells(self, row: Row) -> tuple[str, ...]:
        if row.error:
            return (row.name, *["-"] * (len(_HEADINGS) - 1))
        base = next((other.ms for other in self.rows if other.name == ADAMW and other.ms), 0.0)
        counts = row.counts
        return (
            row.name,
            size(row.state_bytes),
            f"{row.state_bytes / max(self.parameters, 1):.2f}",
            f"{counts.launches:,}" if counts else "?",
            size(counts.moved) if counts else "?",
            milliseconds(row.ms),
            milliseconds(row.iqr),
            f"{row.ms / base:.2f}" if base else "-",
        )


ADAMW = "torch AdamW"
_HEADINGS = ("optimizer", "state", "per parameter", "launches", "moved", "ms", "spread", f"x {ADAMW}")
_PART_HEADINGS = ("technique", "tensors", "state", "launches", "moved", "ms", "spread", "of it state", "share")


def _part(part: Part, row: Row) -> tuple[str, ...]:
    whole = sum(each.ms for each in row.parts)
    return (
        part.name,
        "" if part.tensors is None else f"{part.tensors:,}",
        size(part.state_bytes) if part.state_bytes else "",
        f"{part.counts.launches:,}",
        size(part.counts.moved),
        milliseconds(part.ms),
        milliseconds(part.iqr),
        milliseconds(part.codec_ms) if part.codec_ms else "",
        f"{100 * part.ms / whole:.0f} %" if whole else "",
    )


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) if number else cell.ljust(width)
                  for number, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size(count: int) -> str:
    """Bytes in the largest binary unit that leaves at least one."""
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
