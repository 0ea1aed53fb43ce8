"""HinaAdamW: AdamW for adapters, with each technique of its family as a switch."""

import dataclasses as dc

from hina_kohya.core.hyper import hyper
from hina_kohya.optim.family import Family
from hina_kohya.optim.settings import Settings


@dc.dataclass(frozen=True)
class HinaAdamWSettings(Settings):
    use_lora_muon: bool = hyper(True, doc="LoRA-Muon for pairs: Muon's step of W = B A; no Cautious for them")


class HinaAdamW(Family):
    """AdamW that knows what a LoRA is: LoRA-Muon for its pairs, Adam with Cautious for the rest.

    With every technique off it is torch.optim.AdamW, bit for bit.

    Example::

        HinaAdamW(network.parameters(), lr=1e-3, use_tam=True, state="8bit")
        HinaAdamW(network.named_parameters(), preset="lokr")
        # sd-scripts: --optimizer_type hina_kohya.HinaAdamW --optimizer_args "preset='lokr'" "use_tam=True"
    """

    Settings = HinaAdamWSettings


@dc.dataclass(frozen=True)
class HinaAutoSettings(HinaAdamWSettings):
    lr: float = hyper(1.0, "[0, inf)", doc="multiplies the learning rate that is found")
    use_auto_lr: bool = hyper(True, doc="find the learning rate, as Prodigy does: give lr=1, schedules multiply it")
    rank_free_lr: bool = hyper(True, doc="keep what the learning rate means when rank or alpha change, from 8 and 8")


class HinaAuto(HinaAdamW):
    """HinaAdamW that finds its learning rate: give 1, as to Prodigy.

    Example::

        HinaAuto(network.named_parameters())
        # sd-scripts: --optimizer_type hina_kohya.HinaAuto --learning_rate 1
    """

    Settings = HinaAutoSettings
