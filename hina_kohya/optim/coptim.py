"""COptim: the Cautious optimizer, its strictness set by how well the gradient agrees with its past."""

import dataclasses as dc

from hina_kohya.core.hyper import hyper
from hina_kohya.optim.automagic_cameamp import PROFILES, AutomagicCameAMPSettings, refuse_other_state
from hina_kohya.optim.family import Family


@dc.dataclass(frozen=True)
class COptimSettings(AutomagicCameAMPSettings):
    targets = {"edge_threshold": ("contextual_cautious.edge_threshold",)}
    came: bool = hyper(False, doc="CAME instead of Adam")
    use_context: bool = hyper(True, doc="let agreement with momenta of several time scales set how cautious a step is")
    momentum_scales: tuple[int, ...] = hyper((1, 5, 20, 100), doc="their time scales in steps, rising")
    context_window: int = hyper(50, "[1, inf)", doc="steps that the usual agreement is averaged over")
    edge_threshold: float = hyper(
        0.9,
        "[0, 1)",
        doc="a fall of the agreement by this share means full caution; spikes have edge_suppression.threshold",
    )
    adaptation_rate: float = hyper(0.1, "(0, 1]", doc="how fast caution follows the agreement")


class COptim(Family):
    """The Cautious optimizer, less strict while gradients agree with momenta of several time scales.

    With ``use_context=False`` it is Cautious AdamW, C-AdamW.

    Example::

        COptim(network.named_parameters(), lr=1e-3, momentum_scales=(1, 10, 100))
        # sd-scripts: --optimizer_type hina_kohya.COptim --optimizer_args "context_window=100"
    """

    Settings = COptimSettings
    profiles = PROFILES


@dc.dataclass(frozen=True)
class COptim8bitSettings(COptimSettings):
    state: str = hyper("8bit", doc="all averages in 8 bits; the class without 8bit in its name has the others")

    def __post_init__(self):
        super().__post_init__()
        refuse_other_state(self.state, "COptim")


class COptim8bit(COptim):
    """COptim with all averages in 8 bits: about 1.3 bytes of state a parameter of a LoRA of rank 16.

    Example::

        COptim8bit(network.named_parameters(), lr=1e-3)
    """

    Settings = COptim8bitSettings
