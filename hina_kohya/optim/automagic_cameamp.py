"""AutomagicCameAMP: CAME's factored averages, the automagic mask, and what guards and shapes a gradient."""

from typing import Any

from hina_kohya.optim.family import Family

_CALM = {
    "edge_suppression": True,
    "spatial_awareness": True,
    "background_regularization": True,
    "lora_rank_penalty": True,
}
PROFILES: dict[str, dict[str, Any]] = {
    "memory_optimized": {
        "edge_suppression": False,
        "spatial_awareness": False,
        "background_regularization": False,
        "lora_rank_penalty": False,
        "enable_dual_momentum": False,
        "automagic_mask.per_row": True,
    },
    "balanced": {**_CALM, "edge_penalty": 0.1, "frequency_penalty": 0.05, "rank_penalty_strength": 0.01},
    "quality_optimized": {
        **_CALM,
        "edge_penalty": 0.15,
        "frequency_penalty": 0.08,
        "rank_penalty_strength": 0.02,
        "enable_dual_momentum": True,
    },
}


class AutomagicCameAMP(Family):
    """Cautious CAME; automagic mask, spikes, frequencies, rank, long-term momentum as switches, or by profile.

    With ``use_cautious=False, bias_correct_confidence=False`` it is CAME (convolutions as matrices).

    Example::

        AutomagicCameAMP(network.named_parameters(), lr=1e-4, profile="balanced")
        # sd-scripts: --optimizer_type hina_kohya.AutomagicCameAMP --optimizer_args "edge_suppression=True"
    """

    overrides = {"lr": 1e-4, "state": "fp32", "came": True}
    profiles = PROFILES


class AutomagicCameAMP8bit(AutomagicCameAMP):
    """AutomagicCameAMP with all averages in 8 bits: about 1.15 bytes of state a parameter of a LoRA of rank 16.

    The mask adds 1.13 bytes, 0.17 by row; a long-term momentum adds one. Only single numbers a matrix, LoRA-RITE's
    bases and SPD's anchors of whole weights are not in 8 bits.

    Example::

        AutomagicCameAMP8bit(network.named_parameters(), lr=1e-4, profile="memory_optimized")
    """

    fixed = {"state": "8bit"}
