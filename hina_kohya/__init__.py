"""Optimizers and adapters for training with kohya sd-scripts. Importing this package imports no torch (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hina_kohya.optim.hina_adamw import HinaAdamW

__version__ = "0.1.0"

__all__ = ["HinaAdamW", "__version__"]

_MODULES: dict[str, str] = {"HinaAdamW": "hina_kohya.optim.hina_adamw"}
# Names that the original documents and old configurations use.
_ALIASES: dict[str, str] = dict.fromkeys(("HinaAdamWOptimizer", "HinaAdamWOptimizer8bit", "CustomAdamW"), "HinaAdamW")


def __getattr__(name: str):
    target = _ALIASES.get(name, name)
    if target in _MODULES:
        return getattr(import_module(_MODULES[target]), target)
    known = ", ".join([*_MODULES, *_ALIASES])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {known}")


def __dir__():
    return sorted([*__all__, *_ALIASES])
