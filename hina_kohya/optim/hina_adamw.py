"""HinaAdamW: AdamW for adapters, with each technique of its family as a switch."""

import dataclasses as dc
import logging
from typing import Any

from hina_kohya.core import report
from hina_kohya.core.hyper import hyper
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.optim import presets
from hina_kohya.optim.settings import Settings, resolve

logger = logging.getLogger("hina_kohya")


@dc.dataclass(frozen=True)
class HinaAdamWSettings(Settings):
    use_alora: bool = hyper(True, doc="LoRA+: a larger learning rate for the factor that starts at zero")
    alora_ratio: float = hyper(16.0, "(0, inf)", doc="its learning rate over its partner's")
    use_allora_rows: bool = hyper(False, doc="ALLoRA: smaller steps for rows of B A that are already large")
    use_kronecker_rms: bool = hyper(False, doc="LoKr: divide each factor's step by the size of the others")


class HinaAdamW(HinaOptimizer):
    """AdamW that knows what a LoRA is. With every technique off it is torch.optim.AdamW, bit for bit.

    Example::

        HinaAdamW(network.parameters(), lr=1e-3, use_tam=True, state="8bit")
        HinaAdamW(network.named_parameters(), preset="lokr")
        # sd-scripts: --optimizer_type hina_kohya.HinaAdamW --optimizer_args "preset='lokr'" "use_tam=True"

    Args:
        params: parameters, param groups or named parameters; names behind ``dict.values()`` are found too.
        lr: learning rate.
        **arguments: the fields of `HinaAdamWSettings` and, as ``technique.option``, any option of a technique that is
            on, such as ``"cautious.floor"``. Raises TypeError or ValueError for what is unknown or out of bounds.
    """

    Settings = HinaAdamWSettings

    def __init__(self, params: Any, lr: float | None = None, **arguments: Any):
        given = arguments if lr is None else {"lr": lr, **arguments}
        preset = presets.load(given.get("preset"), type(self).__name__)
        resolved = resolve(HinaAdamWSettings, given, preset)
        settings = self.settings = resolved.settings
        if lr is not None and preset.get("lr", lr) != lr:
            logger.info("preset %s suggests lr = %g; using the given %g", settings.preset, preset["lr"], lr)
        self.conflicts = resolved.conflicts
        super().__init__(
            params,
            resolved.techniques,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            state=settings.state,
            decay_roles=settings.decay_roles,
            compile=settings.compile,
            override_hyperparameters=settings.override_hyperparameters,
        )

    def diagnose_lora_pairing(self) -> dict[str, Any]:
        """Which parameters were paired with which, group by group; for "why does my ratio not act?"."""
        return report.pairing(self)
