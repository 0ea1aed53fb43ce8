"""The best validation of a run so far; it goes into the best file and into each saved state, and so outlives a stop."""

import dataclasses as dc
import json
import math
import uuid
from pathlib import Path
from typing import Any

from hina_kohya.files import atomic
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.reading import AdapterFile
from hina_kohya.trainers.errors import UserError

FILE = "hina_best.json"  # in the folder of a state
KEY = "hina_best"  # in the metadata of a best file


@dc.dataclass(frozen=True)
class Best:
    """
    seed  : of the validation's noise; with another one losses cannot be compared
    run   : one word for a run and everything that resumes it
    loss  : the lowest so far, of step `step`; inf: there is none
    misses: validations since
    values: losses that one validation is the mean of
    """

    seed: int
    run: str = dc.field(default_factory=lambda: uuid.uuid4().hex)
    loss: float = math.inf
    step: int = 0
    misses: int = 0
    values: int = 0

    def after(self, loss: float, step: int) -> "Best":
        """With one more validation. NaN is no improvement."""
        if loss < self.loss:
            return dc.replace(self, loss=loss, step=step, misses=0)
        return dc.replace(self, misses=self.misses + 1)

    def text(self) -> str:
        return json.dumps(dc.asdict(self))

    def write(self, folder: Path) -> None:
        with atomic(folder / FILE) as unfinished:
            unfinished.write_text(self.text(), encoding="utf-8")


def of_state(folder: Path) -> Best | None:
    """What `write` left in a state; None where there is nothing. Raises UserError for a damaged file."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return _read(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}); take an older state, or remove this file to begin anew"
        ) from error


def of_file(path: Path) -> Best | None:
    """What a best file says of itself; None where there is none, or one that says nothing."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        return _read(json.loads(AdapterFile(path, strict=False).metadata[KEY]))
    except (AdapterError, OSError, ValueError, KeyError, TypeError):
        return None  # not ours, or not whole: whoever trains writes it anew


def _read(content: dict[str, Any]) -> Best:
    kinds = {field.name: field.type for field in dc.fields(Best)}
    return Best(**{name: kind(content[name]) for name, kind in kinds.items()})  # type: ignore[operator]
