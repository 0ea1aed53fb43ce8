"""Presets of LyCORIS by name, in `configs/lycoris` of the project, shipped inside the package: what is adapted where.

LyCORIS's own presets go by class names, which several models share; these take the layers that the trainers' own
networks take.
"""

from pathlib import Path

_PACKAGED = Path(__file__).parents[1] / "configs" / "lycoris"
_CHECKOUT = Path(__file__).parents[2] / "configs" / "lycoris"


def _folder() -> Path:
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def names() -> list[str]:
    return sorted(path.stem for path in _folder().glob("*.toml"))


def path(preset: str) -> str:
    """The file of a preset of ours, as LyCORIS takes it; anything else as it is."""
    if Path(preset).is_file() or preset not in names():
        return preset
    return str(_folder() / f"{preset}.toml")
