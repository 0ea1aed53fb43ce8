"""The optimizers by name, and the options that guard each other."""

CLASSES = [
    "HinaAdamW",
    "HinaAuto",
    "AdaptiveHinaAdamW",
    "AutomagicCameAMP",
    "AutomagicCameAMP8bit",
    "COptim",
    "COptim8bit",
]
GUARDED = {
    "edge_suppression": True,
    "spatial_awareness": True,
    "background_regularization": True,
    "enable_dual_momentum": True,
    "lora_rank_penalty": True,
    "use_tam": True,
    "use_allora_rows": True,
    "use_lr_mask": True,
}
