"""AutomagicCameAMP: CAME's factored averages, the automagic mask, and what guards and shapes a gradient."""

import dataclasses as dc
from typing import Any

from hina_kohya.core.hyper import Interval, check_value, hyper
from hina_kohya.optim.family import Family
from hina_kohya.optim.settings import MaskSettings, numbers

BETAS, EPS = (0.9, 0.999, 0.9999), (1e-30, 1e-16, 1e-8)


@dc.dataclass(frozen=True)
class AutomagicCameAMPSettings(MaskSettings):
    lr: float = hyper(1e-4, "[0, inf)", doc="learning rate")
    betas: tuple[float, ...] = hyper(BETAS, doc="decay of the averages of gradient, its square, and its residual")
    eps: float | tuple[float, ...] = hyper(
        EPS, doc="added to squared gradient, to squared residual, and, without CAME, to the root"
    )
    state: str = hyper("fp32", doc='how moments are kept: "8bit", "bf16" or "fp32"')
    came: bool = hyper(True, doc="CAME instead of Adam")
    clip_threshold: float = hyper(1.0, "(0, inf]", doc="largest RMS of CAME's normalised gradient")
    bias_correct_confidence: bool = hyper(
        True,
        doc="steps of Adam's size from the start; CAME's own are 11 times as large at first, and need a tenth of lr",
    )
    beta1_decay: float = hyper(1.0, "(0, 1]", doc="beta1 shrinks by this factor each step, down to 0.4")
    full_finetune: bool = hyper(False, doc="whole weights are trained: no rule that is for adapters")
    eta: float = hyper(2.0, "(0, inf)", doc="largest factor of ALLoRA")
    edge_suppression: bool = hyper(False, doc="damp gradient spikes, matrix by matrix")
    edge_threshold: float = hyper(0.6, "[0, 1)", doc="a spike is that share above the running norm: 0.6 is 2.5 times")
    edge_penalty: float = hyper(0.1, "[0, 1]", doc="share of the excess that is taken away")
    spatial_awareness: bool = hyper(False, doc="damp high spatial frequencies of convolution kernels' gradients")
    background_regularization: bool = hyper(False, doc="damp gradients that alternate over training time")
    frequency_penalty: float = hyper(0.05, "[0, 1]", doc="share taken from the highest frequency, in space and in time")
    detail_preservation: float = hyper(0.8, "[0, 1)", doc="frequencies up to this share of the highest are left alone")
    lora_rank_penalty: bool = hyper(False, doc="soft-threshold the small singular values of B A")
    rank_penalty_strength: float = hyper(0.01, "[0, inf)", doc="threshold over lr and largest singular value")
    low_rank_emphasis: float = hyper(1.2, "[1, inf)", doc="1 treats all singular values alike, more hits small ones")
    enable_dual_momentum: bool = hyper(False, doc="mix a long-term momentum in")
    long_term_beta: float = hyper(0.99, "[0, 1)", doc="its decay")
    alpha_mix_ratio: float | None = hyper(None, "[0, inf)", doc="its weight; None: the technique's own")
    profile: str | None = hyper(None, doc='"memory_optimized", "balanced" or "quality_optimized"; arguments win')
    verbose: bool = hyper(False, doc="log every technique in effect with its options")

    def __post_init__(self):
        for number, value in enumerate(numbers("eps", self.eps, EPS)):
            check_value(f"eps[{number}]", value, EPS[number], Interval("(0, inf)"))
        super().__post_init__()

    def moment_options(self, technique: str, given: Any) -> dict[str, Any]:
        beta1, beta2, beta3 = numbers("betas", self.betas, BETAS)
        eps1, eps2, eps = numbers("eps", self.eps, EPS)
        if technique == "came":
            return {"beta1": beta1, "beta2": beta2, "beta3": beta3, "eps1": eps1, "eps2": eps2}
        if technique == "adam":
            return {"beta1": beta1, "beta2": beta2, "eps": eps}
        if "betas" not in given:
            return {}
        return {"beta": beta1} if technique in ("muon", "lora_muon") else {"beta1": beta1, "beta2": beta2}


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

    Settings = AutomagicCameAMPSettings
    profiles = PROFILES


@dc.dataclass(frozen=True)
class AutomagicCameAMP8bitSettings(AutomagicCameAMPSettings):
    state: str = hyper("8bit", doc="all averages in 8 bits; the class without 8bit in its name has the others")

    def __post_init__(self):
        super().__post_init__()
        refuse_other_state(self.state, "AutomagicCameAMP")


def refuse_other_state(state: str, other: str) -> None:
    if state != "8bit":
        raise ValueError(f"state = {state!r}: {other}8bit keeps all its state in 8 bits; use {other} for {state!r}")


class AutomagicCameAMP8bit(AutomagicCameAMP):
    """AutomagicCameAMP with all averages in 8 bits: about 1.15 bytes of state a parameter of a LoRA of rank 16.

    The mask adds 1.13 bytes, 0.17 by row; a long-term momentum adds one. Only single numbers a matrix, LoRA-RITE's
    bases and SPD's anchors of whole weights are not in 8 bits.

    Example::

        AutomagicCameAMP8bit(network.named_parameters(), lr=1e-4, profile="memory_optimized")
    """

    Settings = AutomagicCameAMP8bitSettings
