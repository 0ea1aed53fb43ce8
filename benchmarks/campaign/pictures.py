"""Figures into files, whole or not at all."""

import io
from pathlib import Path
from typing import Any

COLOURS = 256  # lines and letters need no more, and the file is a third of the size


def save(figures: dict[str, Any], stem: Path) -> list[str]:
    """Writes STEM_KIND.png of each figure that there is; their names."""
    from PIL import Image  # noqa: PLC0415 (comes with matplotlib)

    names = []
    for kind, figure in figures.items():
        if figure is not None:
            file = stem.with_name(f"{stem.name}_{kind}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f".{file.name}")
            whole = io.BytesIO()
            figure.savefig(whole, dpi=110, format="png")
            Image.open(whole).convert("RGB").quantize(COLOURS).save(unfinished, format="png", optimize=True)
            unfinished.replace(file)
            names.append(file.name)
    return names
