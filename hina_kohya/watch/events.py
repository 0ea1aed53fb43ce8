"""TensorBoard's event files as curves: every point, damage by name, a resumed run in one piece."""

import dataclasses as dc
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

LOSS, AVERAGE = "loss/current", "loss/average"
PATTERN = "*.tfevents.*"
# Both trainers log these with the number of the epoch where the others have that of the step.
_BY_EPOCH = ("loss/epoch", "loss/epoch_average", "loss/validation/epoch_average", "loss/validation/epoch_divergence")
# Seconds between what a file's metadata call the start and the end, and the clock of its event files.
_SLACK = 120.0
_HEAD, _TAIL = 12, 4  # bytes of a record before and after its content: length and checksum, checksum


@dc.dataclass(frozen=True)
class Curve:
    """steps [n] rising, values [n], times [n] in seconds since 1970."""

    steps: np.ndarray
    values: np.ndarray
    times: np.ndarray

    def finite(self) -> "Curve":
        return self.at(np.isfinite(self.values))

    def at(self, places: np.ndarray) -> "Curve":
        return Curve(self.steps[places], self.values[places], self.times[places])

    def __len__(self) -> int:
        return len(self.steps)


@dc.dataclass(frozen=True)
class Session:
    """What one start of a trainer logged: one folder. problems: one line per damaged file."""

    folder: Path
    files: tuple[Path, ...]
    curves: dict[str, Curve]
    problems: tuple[str, ...]

    @property
    def start(self) -> float:
        return min(float(curve.times[0]) for curve in self.curves.values())

    @property
    def first_step(self) -> int:
        return int(self.curves[LOSS].steps[0]) if LOSS in self.curves else 0


def sessions(folders: Iterable[Path]) -> tuple[list[Session], list[str]]:
    """Those with scalars, the oldest first, and a line per file that is damaged and holds none."""
    files = sorted({file.resolve() for folder in folders for file in folder.rglob(PATTERN) if file.is_file()})
    found, problems = [], []
    for folder in dict.fromkeys(file.parent for file in files):
        session = _session(folder, tuple(file for file in files if file.parent == folder))
        if session.curves:
            found.append(session)
        else:
            problems += session.problems
    return sorted(found, key=lambda session: session.start), problems


def choose(found: Sequence[Session], started: float | None, finished: float | None) -> list[Session]:
    """The sessions of one run, in order: that of its time, and those it was resumed from.

    started, finished: by the adapter's metadata; None: unknown, then the newest session is meant.
    """
    latest = math.inf if finished is None else finished + _SLACK
    fits = [each for each in found if started is None or started - _SLACK <= each.start <= latest]
    if not fits:
        return []
    chain = [fits[-1]]
    for earlier in reversed(found[: found.index(fits[-1])]):
        first = chain[0].first_step
        if first <= 1 or LOSS not in earlier.curves:
            break
        if earlier.first_step < first <= int(earlier.curves[LOSS].steps[-1]) + 1:
            chain.insert(0, earlier)
    return chain


def joined(chain: Sequence[Session]) -> dict[str, Curve]:
    """tag -> its curve over all sessions; a later session replaces what an earlier one did beyond its first step."""
    result: dict[str, Curve] = {}
    for session in chain:
        for tag, curve in result.items():
            result[tag] = curve.at(curve.steps < session.first_step)
        for tag, curve in session.curves.items():
            before = result.get(tag)
            pairs = [curve] if before is None else [before, curve]
            result[tag] = Curve(*(np.concatenate([getattr(each, field.name) for each in pairs])
                                  for field in dc.fields(Curve)))  # fmt: skip
    return {tag: curve for tag, curve in result.items() if len(curve)}


def _session(folder: Path, files: tuple[Path, ...]) -> Session:
    points: dict[str, list[tuple[int, float, float]]] = {}
    problems = [line for file in files if (line := _read(file, points))]
    curves = {tag: _curve(tag, rows) for tag, rows in points.items()}
    clock = curves.get(LOSS)
    if clock is not None:
        curves |= {tag: _on_steps(curves[tag], clock) for tag in _BY_EPOCH if tag in curves}
    return Session(folder, files, curves, tuple(problems))


def _read(path: Path, points: dict[str, list[tuple[int, float, float]]]) -> str | None:
    """Adds a file's scalars to `points`: tag -> (step, value, time). Returns what is wrong with the file."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader  # noqa: PLC0415
    from tensorboard.util.tensor_util import make_ndarray  # noqa: PLC0415

    whole, rest = _records(path)
    count = 0
    try:
        for event in LegacyEventFileLoader(str(path)).Load():
            count += 1
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                if kind == "simple_value":
                    number = value.simple_value
                elif kind == "tensor" and (array := make_ndarray(value.tensor)).size == 1 and array.dtype.kind in "fiu":
                    number = array.item()
                else:
                    continue
                points.setdefault(value.tag, []).append((event.step, float(number), event.wall_time))
    except DecodeError:
        pass  # said below, by the count
    if count < whole or (rest and not whole):
        return f"{path} is damaged after {count} of its records; what came later is not shown"
    return f"{path} ends within a record: a run that is still writing, or one that was killed" if rest else None


def _records(path: Path) -> tuple[int, int]:
    """Whole records by the lengths that they say, and the bytes after the last one."""
    size, place, count = path.stat().st_size, 0, 0
    with path.open("rb") as file:
        while len(head := file.read(_HEAD)) == _HEAD:
            end = place + _HEAD + struct.unpack("<Q", head[:8])[0] + _TAIL
            if end > size:
                break
            place, count = end, count + 1
            file.seek(place)
    return count, size - place


def _curve(tag: str, rows: list[tuple[int, float, float]]) -> Curve:
    """In the order of steps. Several values of one step are those of its accumulated batches: a loss is their mean."""
    table = np.array(rows, dtype=np.float64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    steps, first, counts = np.unique(table[:, 0].astype(np.int64), return_index=True, return_counts=True)
    last = first + counts - 1
    mean = tag.startswith("loss/") and tag not in _BY_EPOCH
    values = np.add.reduceat(table[:, 1], first) / counts if mean else table[last, 1]
    return Curve(steps, values, table[last, 2])


def _on_steps(curve: Curve, clock: Curve) -> Curve:
    """A curve by epochs, placed at the last step before each of its points was written."""
    order = np.argsort(clock.times, kind="stable")
    places = np.searchsorted(clock.times[order], curve.times, side="right") - 1
    return dc.replace(curve, steps=clock.steps[order][np.clip(places, 0, None)])
