"""What the optimizers of this family share: from arguments to a chain, and a preset on the way."""

import logging
from collections.abc import Mapping, Sequence
from inspect import Signature
from types import SimpleNamespace
from typing import Any, ClassVar

from torch import Tensor

from hina_kohya.core.groups import number_of
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.optim import arguments, presets, report
from hina_kohya.optim.resolving import resolve

logger = logging.getLogger("hina_kohya")


class _Signature:
    """`__signature__` of a class of the family, from the table as it is when somebody asks."""

    def __get__(self, instance: object, owner: "type[Family]") -> Signature | None:
        return arguments.signature(owner) if owner.__init__ is Family.__init__ else None


class Family(HinaOptimizer):
    """An optimizer whose arguments are rows of `arguments`, with defaults of its own in ``overrides``.

    Args:
        params: parameters, param groups or named parameters; names behind ``dict.values()`` are found too.
        lr, betas, eps, weight_decay: by position too, in torch's order; lr may be a tensor.
        **more: the other arguments of the class and, as ``technique.option``, any option of a technique that is
            on, such as ``"cautious.floor"``. Raises TypeError or ValueError for what is unknown or out of bounds.
    """

    __signature__ = _Signature()
    overrides: ClassVar[Mapping[str, Any]] = {}
    fixed: ClassVar[Mapping[str, Any]] = {}  # what is no argument of the class, since it has one value
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    settings: SimpleNamespace  # every argument by name, those not given too

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        betas: Sequence[float] | None = None,
        eps: float | Sequence[float] | None = None,
        weight_decay: float | None = None,
        **more: Any,
    ):
        usual = {"lr": number_of(lr), "betas": betas, "eps": eps, "weight_decay": weight_decay}
        given = {name: value for name, value in usual.items() if value is not None} | more
        preset = presets.load(given.get("preset"), type(self).__name__)
        resolved = resolve(type(self), given, preset, self.profiles)
        settings = self.settings = resolved.settings
        self.check_settings(settings)
        if "lr" in given and preset.get("lr", settings.lr) != settings.lr:
            logger.info("preset %s suggests lr = %g; using the given %g", settings.preset, preset["lr"], settings.lr)
        self.conflicts, self.asked = resolved.conflicts, resolved.asked
        super().__init__(
            params,
            resolved.techniques,
            lr=lr if isinstance(lr, Tensor) else settings.lr,
            weight_decay=settings.weight_decay,
            betas=tuple(settings.betas),
            state=settings.state,
            decay_roles=settings.decay_roles,
            lora_scale=settings.lora_scale,
            compile=settings.compile,
            override_hyperparameters=settings.override_hyperparameters,
        )
        if getattr(settings, "verbose", False):
            logger.info("%s: %s", type(self).__name__, "; ".join(map(str, resolved.techniques)))

    @classmethod
    def check_settings(cls, settings: SimpleNamespace) -> None:
        """For subclasses: raises ValueError for what bounds do not say."""

    def __getstate__(self) -> dict[str, Any]:
        own = ("settings", "conflicts", "asked")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}

    def _announce(self) -> None:
        logger.info(self.summary())
        report.say_odd_rates(self)
        report.say_idle(self)

    def summary(self) -> str:
        """The one line that is logged at the first step."""
        return report.summary(self, self._codec.name)

    @property
    def effective_lr(self) -> list[float]:
        """For each param group, the learning rate its elements get on average, role rules included."""
        return report.effective_lr(self)

    def get_optimization_info(self) -> dict[str, Any]:
        """Type, features in effect, conflicts, what was recognised, progress and memory; JSON-serialisable."""
        return report.information(self)

    def get_memory_efficiency_report(self) -> dict[str, Any]:
        """Exact bytes of state, in all and per parameter."""
        return report.memory(self)

    @property
    def found_rate(self) -> float | None:
        """What `use_auto_lr` multiplies all learning rates by at the next step; None where it is off."""
        return report.found_rate(self)

    def diagnose_lora_pairing(self) -> dict[str, Any]:
        """Which parameters were paired with which, group by group; for "why does my ratio not act?"."""
        return report.pairing(self)
