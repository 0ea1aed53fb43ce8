"""ADLRNS: low-rank layers whose directions depend on the input's state, within a budget. Importing it imports no torch.

`--network_module hina_kohya.adlrns` is its LyCORIS network; `DynamicLowRankLayer` and `compress` stand alone.
"""

from importlib import import_module
from typing import Any

_MODULES: dict[str, str] = {
    "create_network": "hina_kohya.adlrns.network",
    "create_network_from_weights": "hina_kohya.adlrns.network",
    "create_arch_network_from_weights": "hina_kohya.adlrns.network",
    # The standalone layer.
    "ADLRNSTrainer": "hina_kohya.adlrns.layer.trainer",
    "BudgetManager": "hina_kohya.adlrns.layer.budget",
    "CompressedModel": "hina_kohya.adlrns.layer.compressed",
    "DynamicLowRankLayer": "hina_kohya.adlrns.layer.module",
    "GateNetwork": "hina_kohya.adlrns.layer.complexity",
    "LightweightScorer": "hina_kohya.adlrns.layer.complexity",
    "PerfEstimator": "hina_kohya.adlrns.layer.perf",
    "RankScheduler": "hina_kohya.adlrns.layer.scheduling",
    "adlrns_resnet": "hina_kohya.adlrns.layer.resnet",
    "compress": "hina_kohya.adlrns.layer.compression",
    "one_cell": "hina_kohya.adlrns.layer.one_cell",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(_MODULES)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
