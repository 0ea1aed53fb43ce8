"""What lies in a run's folder: adapters of one name in the order they were saved, a TOML, samples, sizes."""

import dataclasses as dc
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import toml

from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.reading import AdapterFile
from hina_kohya.watch.errors import ReportError

_SAVED = re.compile(r"(?P<name>.+?)-(?:step(?P<step>\d{8})|(?P<epoch>\d{6})|best)$")
_TRAINING_KEYS = {"network_module", "output_dir", "output_name", "learning_rate", "max_train_steps", "optimizer_type"}
# A page is for others to see: these options are not.
_SECRET = re.compile(r"(api_key|token|password|secret)$", re.IGNORECASE)
MOST_FILES = 200


@dc.dataclass(frozen=True)
class Saved:
    """An adapter file. name: that of its run; step: None where nothing says it; time: seconds since 1970."""

    path: Path
    name: str
    step: int | None
    time: float
    metadata: dict[str, str]


@dc.dataclass(frozen=True)
class Entry:
    """A row of the list of files; of a folder all that is in it."""

    name: str
    bytes: int
    files: int
    time: float


def adapters(folder: Path) -> tuple[list[Saved], list[str]]:
    """Every .safetensors file of a folder, the oldest first, and a line per damaged one. Only headers are read."""
    found, problems = [], []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            file = AdapterFile(path, strict=False)
        except (AdapterError, OSError) as error:
            problems.append(str(error))
            continue
        found.append(_saved(path, file.metadata))
    # Copying may lose files' times and their order; a final file has no number and comes last.
    return sorted(found, key=lambda each: (each.time, each.step or 0, not _SAVED.match(each.path.stem))), problems


def _saved(path: Path, metadata: dict[str, str]) -> Saved:
    match = _SAVED.match(path.stem)
    step = number(metadata.get("ss_steps"))
    if step is None and match and match["step"]:
        step = float(match["step"])
    time = number(metadata.get("ss_training_finished_at"))
    name = metadata.get("ss_output_name") or (match["name"] if match else path.stem)
    when = path.stat().st_mtime if time is None else time
    return Saved(path, name, None if step is None else int(step), when, metadata)


def number(text: str | None) -> float | None:
    """A finite number, or None for anything else, such as "None"."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < 1e18 else None


def of_run(found: Sequence[Saved], name: str | None) -> list[Saved]:
    """Those of one run: the newest one's, or those of a name. Raises ReportError for a name that there is not."""
    if name is not None and not any(each.name == name for each in found):
        names = ", ".join(dict.fromkeys(each.name for each in found)) or "none"
        raise ReportError(f"there is no run {name} in the folder, only {names}; give --name one of them")
    wanted = name if name is not None else found[-1].name if found else None
    return [each for each in found if each.name == wanted]


def settings(path: Path) -> dict[str, str]:
    """option -> value of a TOML; sections are free, as in sd-scripts. Raises ReportError."""
    try:
        content = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, toml.TomlDecodeError, IndexError, ValueError) as error:
        raise ReportError(f"{path} is no readable TOML: {' '.join(str(error).split())[:160]}") from None
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat.update(value if isinstance(value, dict) else {key: value})
    return {key: "(hidden)" if _SECRET.search(key) and value else text(value) for key, value in flat.items()}


def text(value: Any) -> str:
    """As a person writes it."""
    if isinstance(value, list):
        return " ".join(map(text, value))
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


def config_of(folder: Path, name: str | None) -> tuple[Path | None, list[str]]:
    """The TOML of a run among those in its folder, the newest where several fit; and a line per damaged one."""
    fits: list[tuple[bool, float, Path]] = []
    problems = []
    for path in sorted(folder.glob("*.toml")):
        try:
            options = settings(path)
        except ReportError as error:
            problems.append(str(error))
            continue
        own = options.get("output_name")
        if _TRAINING_KEYS & set(options) and (own is None or name is None or own == name):
            fits.append((own is not None and own == name, path.stat().st_mtime, path))
    return (max(fits)[-1] if fits else None), problems


def entries(folder: Path) -> list[Entry]:
    """What is in the folder, the oldest first."""
    found = []
    for path in folder.iterdir():
        inside = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        stats = [file.stat() for file in inside if file.exists()]
        latest = max((stat.st_mtime for stat in stats), default=0.0)
        name = f"{path.name}/" if path.is_dir() else path.name
        found.append(Entry(name, sum(stat.st_size for stat in stats), len(stats), latest))
    return sorted(found, key=lambda entry: (entry.time, entry.name))


def demo_summary(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What `hina-kohya train` wrote about itself; {} where nothing did. And what is wrong with the file."""
    path = folder / "summary.json"
    if not path.is_file():
        return {}, None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path} is damaged: {' '.join(str(error).split())[:120]}"
    ours = isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("settings", "versions"))
    return (content if ours else {}), None
