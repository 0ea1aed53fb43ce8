"""Samples that the trainer drew, by prompt and step, small enough to travel in a page."""

import base64
import dataclasses as dc
import io
import re
from collections.abc import Sequence
from pathlib import Path

# Of sd-scripts and musubi-tuner: [name_](e000001|000100)_00_20260101120000[_seed][_000].png
_NAME = re.compile(r"(?:(?P<run>.*)_)?(?P<when>e?\d{6})_(?P<prompt>\d{2,})_(?P<time>\d{14})(?:_\w+)*$")
_IMAGES = (".png", ".jpg", ".jpeg", ".webp")
_SIDE, _WIDE = 320, 1100  # pixels: of a sample, of the demo's sheet of samples
MOST_PROMPTS, MOST_STEPS = 6, 8


@dc.dataclass(frozen=True)
class Picture:
    """uri: a JPEG in the page itself."""

    title: str
    uri: str
    width: int
    height: int


@dc.dataclass(frozen=True)
class Samples:
    """rows: (prompt, its pictures in the order of steps); sheet: the demo's; shown of `count` pictures."""

    rows: tuple[tuple[str, tuple[Picture, ...]], ...] = ()
    sheet: Picture | None = None
    count: int = 0
    videos: int = 0
    problems: tuple[str, ...] = ()

    @property
    def shown(self) -> int:
        return sum(len(row) for _, row in self.rows)


def gather(folder: Path, name: str | None) -> Samples:
    """name: of the run, where several share the folder."""
    inside = sorted((folder / "sample").glob("*")) if (folder / "sample").is_dir() else []
    paths = [path for path in inside if path.suffix.lower() in _IMAGES]
    own = [path for path in paths if (match := _NAME.match(path.stem)) and match["run"] == name]
    by_prompt: dict[str, list[tuple[tuple[str, str], Path]]] = {}
    for path in own or paths:
        match = _NAME.match(path.stem)
        prompt = f"prompt {int(match['prompt']) + 1}" if match else "others"
        order = (match["time"], match["when"]) if match else ("", path.name)
        by_prompt.setdefault(prompt, []).append((order, path))
    problems: list[str] = []
    rows = []
    for prompt in list(by_prompt)[:MOST_PROMPTS]:
        files = [path for _, path in sorted(by_prompt[prompt])]
        pictures = [_picture(path, _title(path), _SIDE, problems) for path in _spread(files, MOST_STEPS)]
        rows.append((prompt, tuple(picture for picture in pictures if picture)))
    sheet_file = folder / "samples.png"
    sheet = _picture(sheet_file, "samples.png", _WIDE, problems) if sheet_file.is_file() else None
    videos = sum(path.suffix.lower() == ".mp4" for path in inside)
    return Samples(tuple(row for row in rows if row[1]), sheet, len(own or paths), videos, tuple(problems))


def _title(path: Path) -> str:
    match = _NAME.match(path.stem)
    if match is None:
        return path.name
    when = match["when"]
    return f"epoch {int(when[1:])}" if when.startswith("e") else f"step {int(when)}"


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    """At most so many, evenly, with the first and the last."""
    if len(files) <= most:
        return list(files)
    return [files[round(place * (len(files) - 1) / (most - 1))] for place in range(most)]


def _picture(path: Path, title: str, side: int, problems: list[str]) -> Picture | None:
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
    # PIL says SyntaxError of a broken PNG, and its own error of one that is a bomb.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problems.append(f"{path} is no readable picture: {' '.join(str(error).split())[:120]}")
        return None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(title, uri, small.width, small.height)
