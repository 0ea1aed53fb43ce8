"""A folder of --save_state, opened: what a run that resumes from it would load."""

import dataclasses as dc
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hina_kohya.check import placeholders
from hina_kohya.check.model_files import tensors_of


@dc.dataclass(frozen=True)
class State:
    """
    step    : of train_state.json, None where an older sd-scripts wrote none
    tensors : names and shapes of the adapter, None where its file cannot be read
    """

    folder: Path
    is_one: bool
    step: int | None = None
    tensors: Mapping[str, tuple[int, ...]] | None = None
    damage: str = ""


def state_of(args: Mapping[str, Any]) -> State | None:
    value = args.get("resume")
    if not value or not isinstance(value, str) or placeholders.is_one(value) or args.get("resume_from_huggingface"):
        return None
    return _read(Path(value))


def _read(folder: Path) -> State:
    if not (folder / "optimizer.bin").is_file():
        return State(folder, False)
    file = next(
        (each for each in (folder / "model.safetensors", folder / "model_1.safetensors") if each.is_file()), None
    )
    try:
        tensors, damage = (tensors_of(file) if file else None), ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        tensors, damage = None, f"{file} cannot be read: {error}"
    return State(folder, True, _step(folder / "train_state.json"), tensors, damage)


def _step(file: Path) -> int | None:
    try:
        step = json.loads(file.read_text(encoding="utf-8"))["current_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
