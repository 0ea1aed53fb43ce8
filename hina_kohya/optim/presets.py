"""Presets: TOML files of optimizer arguments, in `configs/presets` of the project, shipped inside the package."""

from pathlib import Path
from typing import Any

import toml

from hina_kohya.text import did_you_mean

_PACKAGED = Path(__file__).parents[1] / "configs" / "presets"
_CHECKOUT = Path(__file__).parents[2] / "configs" / "presets"


def folder() -> Path:
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def names(optimizer: str) -> list[str]:
    """Presets made for one optimizer class, or for the one it is the 8-bit form of."""
    made_for = optimizer.removesuffix("8bit")
    return sorted(path.stem for path in folder().glob("*.toml") if toml.load(path).get("optimizer") == made_for)


def load(preset: str | None, optimizer: str) -> dict[str, Any]:
    """Arguments of a preset, by name or path. Raises ValueError where it does not exist or is another optimizer's."""
    if preset is None:
        return {}
    path = Path(preset) if preset.endswith(".toml") else folder() / f"{preset}.toml"
    if not path.is_file():
        raise ValueError(f"there is no preset {preset!r}; {did_you_mean(preset, names(optimizer))}")
    content = toml.load(path)
    if content.get("optimizer") != optimizer.removesuffix("8bit"):
        raise ValueError(f"preset {preset!r} is for {content.get('optimizer')}, not for {optimizer}")
    return dict(content.get("arguments", {}))
