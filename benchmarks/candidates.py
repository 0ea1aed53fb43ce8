"""The optimizers that are compared, each as a function from named parameters to an optimizer."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.shapes import Named

Build = Callable[[Named], torch.optim.Optimizer]

LR, DECAY = 1e-4, 1e-2

OFF = {"use_lora_muon": False, "use_cautious": False}
# Everything that does not exclude another, whatever set it meets: pairs use ALLoRA, Kronecker factors the RMS rule.
ALL = {
    "use_agr": True,
    "use_orthogonal_grad": True,
    "use_tam": True,
    "use_cautious": True,
    "use_alora": True,
    "use_allora_rows": True,
    "use_kronecker_rms": True,
    "dynamic_weight_decay": True,
    "use_cautious_weight_decay": True,
}
PROFILES = ("memory_optimized", "balanced", "quality_optimized")
TECHNIQUES = [
    *ALL,
    "use_grams",
    "use_adopt_stability",
    "use_muon",
    "use_lora_muon",
    "use_spd",
    "use_lora_rite",
]


def ours(cls: str, **arguments: Any) -> Build:
    def build(named: Named) -> torch.optim.Optimizer:
        import hina_kohya  # noqa: PLC0415

        return getattr(hina_kohya, cls)(named, lr=LR, weight_decay=DECAY, **arguments)

    return build


def _hina(state: str, **arguments: Any) -> Build:
    return ours("HinaAdamW", state=state, **arguments)


def _torch(**arguments: Any) -> Build:
    return lambda named: torch.optim.AdamW([p for _, p in named], lr=LR, weight_decay=DECAY, **arguments)


def _bitsandbytes(named: Named) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415

    return AdamW8bit([p for _, p in named], lr=LR, weight_decay=DECAY)


def _adv_optm(named: Named) -> torch.optim.Optimizer:
    from adv_optm import AdamW_adv  # noqa: PLC0415

    return AdamW_adv([p for _, p in named], lr=LR, weight_decay=DECAY)


def _pytorch_optimizer(name: str, **arguments: Any) -> Build:
    def build(named: Named) -> torch.optim.Optimizer:
        import pytorch_optimizer  # noqa: PLC0415

        return getattr(pytorch_optimizer, name)([p for _, p in named], lr=LR, weight_decay=DECAY, **arguments)

    return build


def _pytorch_optimizer_normuon(named: Named) -> torch.optim.Optimizer:
    import pytorch_optimizer  # noqa: PLC0415

    matrices = [p for _, p in named if p.dim() > 1]
    groups = [{"params": matrices, "use_muon": True}]
    if rest := [p for _, p in named if p.dim() < 2]:
        groups.append({"params": rest, "use_muon": False})
    return pytorch_optimizer.NorMuon(groups, lr=LR, weight_decay=DECAY)


def _came(named: Named) -> torch.optim.Optimizer:
    from came_pytorch import CAME  # noqa: PLC0415

    return CAME([p for _, p in named], lr=LR, weight_decay=DECAY)


CANDIDATES: dict[str, Build] = {
    "torch-loop": _torch(foreach=False),
    "torch-foreach": _torch(foreach=True),
    "torch-fused": _torch(fused=True),
    "bnb-adamw8bit": _bitsandbytes,
    "adv-adamw": _adv_optm,
    "po-adamw": _pytorch_optimizer("AdamW"),
    "po-normuon": _pytorch_optimizer_normuon,
    "came": _came,
    **{f"hina-off-{state}": _hina(state, **OFF) for state in ("fp32", "bf16", "8bit")},
    **{f"hina-default-{state}": _hina(state) for state in ("fp32", "bf16", "8bit")},
    **{f"hina-all-{state}": _hina(state, **ALL) for state in ("fp32", "bf16", "8bit")},
    "hina-adam-8bit": ours("HinaAdamW", use_lora_muon=False),
    "adaptive-default-8bit": ours("AdaptiveHinaAdamW"),
    "adaptive-on-8bit": ours("AdaptiveHinaAdamW", use_dynamic_adaptation=True),
    "camp-default-fp32": ours("AutomagicCameAMP"),
    "camp8bit-default": ours("AutomagicCameAMP8bit"),
    **{f"camp8bit-{profile}": ours("AutomagicCameAMP8bit", profile=profile) for profile in PROFILES},
    "coptim-default-fp32": ours("COptim"),
    "coptim8bit-default": ours("COptim8bit"),
    "coptim8bit-came": ours("COptim8bit", came=True),
    **{f"hina-{flag.removeprefix('use_')}-fp32": _hina("fp32", **{**OFF, flag: True}) for flag in TECHNIQUES},
}
YARDSTICKS = {"to_bnb": "bnb-adamw8bit", "to_adv": "adv-adamw", "to_foreach": "torch-foreach"}
MAIN = [name for name in CANDIDATES if name.split("-")[0] != "hina" or name.split("-")[1] in ("off", "default", "all")]
