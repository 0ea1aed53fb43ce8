"""A block of our lines at the end of a file of LyCORIS or sd-scripts, put in so that it can be trusted and taken out.

`inspect` says how a target is, `warning` whether a patched file would find this package. `apply` and `revert` change
it; `preview` shows what apply would change.
"""

from hina_kohya.patch.operations import apply, preview, revert
from hina_kohya.patch.states import State, Status, inspect, warning

__all__ = ["State", "Status", "apply", "inspect", "preview", "revert", "warning"]
