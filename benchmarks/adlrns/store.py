"""Finished runs, one JSON line each, whole or not at all, so that a benchmark may be stopped at any point."""

import dataclasses as dc
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .runs import PROTOCOL, Run

Record = dict[str, Any]
FIELDS = tuple(field.name for field in dc.fields(Run))


class Store:
    """``records`` maps a run's key to what came out of it; the last line of a key counts."""

    def __init__(self, file: Path):
        self.file = file
        self.records: dict[str, Record] = {}
        for line in file.read_bytes().split(b"\n") if file.is_file() else []:
            try:
                record = json.loads(line)
            except ValueError:  # a line that a crash cut short
                continue
            if record.get("protocol") == PROTOCOL:
                self.records[_run(record).key] = record

    def get(self, run: Run) -> Record | None:
        return self.records.get(run.key)

    def add(self, record: Record) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        cut = self.file.is_file() and self.file.stat().st_size and not self.file.read_bytes().endswith(b"\n")
        with open(self.file, "ab", buffering=0) as file:  # one write
            file.write((b"\n" if cut else b"") + json.dumps(record).encode() + b"\n")
            os.fsync(file.fileno())
        self.records[_run(record).key] = record

    def forget(self, stale: Iterable[str]) -> None:
        """Runs of these keys are to be made again; their lines stay in the file."""
        for key in stale:
            self.records.pop(key, None)


def _run(record: Record) -> Run:
    return Run(**{name: record[name] for name in FIELDS})
