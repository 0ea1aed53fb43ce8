"""Patch files for LyCORIS and sd-scripts, applied so that they can be trusted and taken back.

`inspect` says how a target is, `explanation` in which lines it is not as published, `warning` whether a patched file
would find this package. `apply` and `revert` change it; `preview` shows what apply would change.
"""

from hina_kohya.patch.operations import apply, preview, revert
from hina_kohya.patch.states import State, Status, explanation, inspect, warning

__all__ = ["State", "Status", "apply", "explanation", "inspect", "preview", "revert", "warning"]
