"""Finished runs, one JSON line each, whole or not at all, so that a benchmark may be stopped at any point."""

import dataclasses as dc
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

Record = dict[str, Any]


class AnyRun(Protocol):
    """A frozen dataclass; its fields are in its record. alone: it measures time, so nothing may run beside it."""

    @property
    def key(self) -> str: ...

    @property
    def alone(self) -> bool: ...


class Store:
    """``records`` maps a run's key to what came out of it; the last line of a key counts. Made for a kind of runs.

    protocol: records of another one are left out
    """

    kind: ClassVar[Any]
    protocol: ClassVar[int]

    def __init__(self, file: Path):
        self.file = file
        self.records: dict[str, Record] = {}
        for line in file.read_bytes().split(b"\n") if file.is_file() else []:
            try:
                record = json.loads(line)
            except ValueError:  # a line that a crash cut short
                continue
            if record.get("protocol") == self.protocol:
                self.records[self.run_of(record).key] = record

    @classmethod
    def run_of(cls, record: Record) -> Any:
        return cls.kind(**{field.name: record[field.name] for field in dc.fields(cls.kind)})

    def get(self, run: AnyRun) -> Record | None:
        return self.records.get(run.key)

    def add(self, record: Record) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        cut = self.file.is_file() and self.file.stat().st_size and not self.file.read_bytes().endswith(b"\n")
        with open(self.file, "ab", buffering=0) as file:  # one write
            file.write((b"\n" if cut else b"") + json.dumps(record).encode() + b"\n")
            os.fsync(file.fileno())
        self.records[self.run_of(record).key] = record

    def forget(self, stale: Iterable[str]) -> None:
        """Runs of these keys are to be made again; their lines stay in the file."""
        for key in stale:
            self.records.pop(key, None)
