"""What the optimizers of this family share: from arguments to a chain, and a preset on the way."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from hina_kohya.core import report
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.optim import presets
from hina_kohya.optim.resolving import resolve
from hina_kohya.optim.settings import Settings as Shared

logger = logging.getLogger("hina_kohya")


class Family(HinaOptimizer):
    """An optimizer whose arguments are the fields of ``Settings``.

    Args:
        params: parameters, param groups or named parameters; names behind ``dict.values()`` are found too.
        lr: learning rate.
        **arguments: the other fields of ``Settings`` and, as ``technique.option``, any option of a technique that is
            on, such as ``"cautious.floor"``. Raises TypeError or ValueError for what is unknown or out of bounds.
    """

    Settings: ClassVar[type[Shared]]
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, params: Any, lr: float | None = None, **arguments: Any):
        given = arguments if lr is None else {"lr": lr, **arguments}
        preset = presets.load(given.get("preset"), type(self).__name__)
        resolved = resolve(self.Settings, given, preset, self.profiles)
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
        if getattr(settings, "verbose", False):
            logger.info("%s: %s", type(self).__name__, "; ".join(map(str, resolved.techniques)))

    def diagnose_lora_pairing(self) -> dict[str, Any]:
        """Which parameters were paired with which, group by group; for "why does my ratio not act?"."""
        return report.pairing(self)
