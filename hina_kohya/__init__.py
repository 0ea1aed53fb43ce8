"""Optimizers and adapters for training with kohya sd-scripts. Importing this package imports no torch (PEP 562)."""

from importlib import import_module

__version__ = "0.1.0"

_LAZY = {"HinaAdamW": "hina_kohya.optim.hina_adamw"}

__all__ = ["HinaAdamW", "__version__"]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)
