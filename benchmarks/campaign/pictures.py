"""Figures into files, whole or not at all."""

from pathlib import Path
from typing import Any


def save(figures: dict[str, Any], stem: Path) -> list[str]:
    """Writes STEM_KIND.png of each figure that there is; their names."""
    names = []
    for kind, figure in figures.items():
        if figure is not None:
            file = stem.with_name(f"{stem.name}_{kind}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = file.with_name(f".{file.name}")
            figure.savefig(unfinished, dpi=110, format="png")
            unfinished.replace(file)
            names.append(file.name)
    return names
