"""How noisy the samples of a call are, read off its timesteps: 0 for the image itself, 1 for noise alone."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hina_kohya.trainers.facts.timesteps import MUSUBI, SD_SCRIPTS, Timestep

logger = logging.getLogger("hina_kohya")

KNOWN = {**MUSUBI, **SD_SCRIPTS}
_ARGUMENTS = ("timesteps", "timestep", "t")  # of models that nobody told us of
_ROUNDING = 0.01  # musubi-tuner counts from 1: 1001 of 1000; half precision rounds, too


class Timesteps:
    """The timestep argument of a model: where it is in a call, how large it can be, and which end is noise.

    `largest`, if given, is the user's. Raises ValueError where the model has no such argument.
    """

    def __init__(self, model: nn.Module, largest: float | None = None):
        self.model = type(model).__name__
        parameters = list(inspect.signature(model.forward).parameters)
        entry = next((KNOWN[each.__name__] for each in type(model).__mro__ if each.__name__ in KNOWN), None)
        self.is_known = entry is not None and entry.argument in parameters
        names = (entry.argument,) if entry is not None and self.is_known else _ARGUMENTS
        name = next((each for each in names if each in parameters), None)
        if name is None:
            problem = f"{self.model}.forward({', '.join(parameters)}) has no {' or '.join(names)}"
            raise ValueError(f"{problem}; write bins=1")
        self.place = parameters.index(name)
        self.timestep = entry if entry is not None and self.is_known else Timestep(name)
        self.largest = largest or (self.timestep.largest if self.is_known else None)
        self._seen: float | None = None  # the scale that values told, if nothing else does

    def of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The timestep argument of a call, as it was given. Raises ValueError where there is none."""
        name = self.timestep.argument
        if name not in kwargs and len(args) <= self.place:
            raise ValueError(f"{self.model} was called without {name}; write bins=1")
        return torch.as_tensor(kwargs[name] if name in kwargs else args[self.place]).detach()

    def one_a_sample(self, timesteps: Tensor) -> bool:
        """Or one that may stand for a whole batch, as samplers give it; trainers that we know never do."""
        return timesteps.dim() > 0 and (self.is_known or timesteps.numel() > 1)

    def noise(self, timesteps: Tensor) -> Tensor:
        """The share of noise of each, float64 on the CPU. Raises ValueError for what cannot be a timestep."""
        values = timesteps.double().flatten().cpu()
        if not bool(values.isfinite().all()):
            raise ValueError(f"a timestep is not finite: {timesteps}")
        largest = self.largest or self._scale(timesteps, values)
        share = values / largest
        low, high = share.aminmax()
        if low < -_ROUNDING or high > 1 + _ROUNDING:
            extreme = float(values.max() if high > 1 + _ROUNDING else values.min())
            fix = "write timesteps=1000 in network_args" if largest == 1 else "write the largest as timesteps=..."
            raise ValueError(f"{self.model} was given a timestep of {extreme:g}, outside 0 to {largest:g}; {fix}")
        return 1 - share if self.timestep.falls else share

    def _scale(self, timesteps: Tensor, values: Tensor) -> float:
        """1 or 1000 by the values of a model that nobody told us of; fractions until there is one above 1."""
        thousand = bool((values > 1).any()) or not timesteps.is_floating_point()
        scale = 1000.0 if thousand or self._seen == 1000 else 1.0
        if scale != self._seen:
            first = ", ".join(f"{value:g}" for value in values[:4].tolist())
            correction = "" if self._seen is None else f", not from 0 to {self._seen:g} as was believed so far"
            other = 1000 if scale == 1 else 1
            logger.warning(
                "adlrns: how %s is given its timesteps is not known here. By their values (%s) they run from 0 to "
                "%g%s; larger ones are taken for noisier. If they run from 0 to %d, write timesteps=%d in network_args",
                *(self.model, first, scale, correction, other, other),
            )
            self._seen = scale
        return scale
