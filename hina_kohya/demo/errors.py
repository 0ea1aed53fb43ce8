"""Errors that are the user's to fix: one clear message and an exit code, never a traceback."""

from hina_kohya.text import nearest
from hina_kohya.trainers.errors import UserError

__all__ = ["TrainingError", "UserError", "did_you_mean"]


class TrainingError(UserError):
    """The settings were fine, yet training cannot go on."""

    exit_code = 1


def did_you_mean(word: str, known: list[str]) -> str:
    """'; did you mean ...?' or nothing: the known options are too many to list."""
    near = nearest(word, known)
    return f"; did you mean {near[0]}?" if near else ""
