"""Optimizers and adapters for training with kohya sd-scripts. Importing this package imports no torch (PEP 562)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hina_kohya.optim.adaptive_hina_adamw import AdaptiveHinaAdamW
    from hina_kohya.optim.automagic_cameamp import AutomagicCameAMP, AutomagicCameAMP8bit
    from hina_kohya.optim.coptim import COptim, COptim8bit
    from hina_kohya.optim.hina_adamw import HinaAdamW, HinaAuto

__version__ = "0.2.0"

__all__ = [
    "AdaptiveHinaAdamW",
    "AutomagicCameAMP",
    "AutomagicCameAMP8bit",
    "COptim",
    "COptim8bit",
    "HinaAdamW",
    "HinaAuto",
    "__version__",
]

_MODULES: dict[str, str] = {
    "HinaAdamW": "hina_kohya.optim.hina_adamw",
    "HinaAuto": "hina_kohya.optim.hina_adamw",
    "AdaptiveHinaAdamW": "hina_kohya.optim.adaptive_hina_adamw",
    "AutomagicCameAMP": "hina_kohya.optim.automagic_cameamp",
    "AutomagicCameAMP8bit": "hina_kohya.optim.automagic_cameamp",
    "COptim": "hina_kohya.optim.coptim",
    "COptim8bit": "hina_kohya.optim.coptim",
}
# Names that the original documents and old configurations use.
_ALIASES: dict[str, str] = {
    **dict.fromkeys(("HinaAdamWOptimizer", "HinaAdamWOptimizer8bit", "CustomAdamW"), "HinaAdamW"),
    **dict.fromkeys(("HinaAdaptiveAdamW", "HinaAdaptiveAdamW8bit"), "AdaptiveHinaAdamW"),
    **dict.fromkeys(("Automagic_CameAMP", "Automagic_CameAMP_Improved"), "AutomagicCameAMP"),
    **dict.fromkeys(
        ("Automagic_CameAMP8bit", "Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit"), "AutomagicCameAMP8bit"
    ),
    "Automagic_CameAMP_COptim": "COptim",
    "Automagic_CameAMP_COptim8bit": "COptim8bit",
}
# Every name that `--optimizer_type` may be, besides dotted paths.
OPTIMIZERS = (*_MODULES, *_ALIASES)


def __getattr__(name: str):
    target = _ALIASES.get(name, name)
    if target in _MODULES:
        return getattr(import_module(_MODULES[target]), target)
    known = ", ".join([*_MODULES, *_ALIASES])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {known}")


def __dir__():
    return sorted([*__all__, *_ALIASES])
