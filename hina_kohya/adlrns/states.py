"""The timestep that a network's modules are run at: read where the model is called, kept until it is called again."""

import inspect
import logging
from typing import Any

import torch
from torch import Tensor, nn

from hina_kohya.adlrns.execution import Batch

logger = logging.getLogger("hina_kohya")

_ARGUMENTS = ("timesteps", "timestep", "t")
_FRACTIONS = {"Flux", "NextDiT", "Anima"}  # sd-scripts gives these 0 to 1; all others 0 to 1000


class States:
    """One object a network. `batch` is that of the running forward, until the next: checkpoints recompute in backward.

    count: states; whole: granularity=batch; probing: this step measures; balancing: also grams
    samples: of the last forward
    output: sums [K, 3] of 1, |g|^2 and |g|^2 * outputs over samples, g the gradient of a sample's loss by the output
    """

    def __init__(self, count: int, whole: bool = False, timesteps: float | None = None):
        self.count, self.whole, self.timesteps = count, whole, timesteps
        self.probing = self.balancing = False
        self.samples = 1
        self.output: Tensor | None = None
        self._batch: Batch | None = None
        self._before: list[tuple[Batch | None, int]] = []
        self._warned = False
        self._handles: list[Any] = []

    def batch(self, training: bool) -> Batch | None:
        """None, once with a warning, where no timestep is known. Raises ValueError for it in training."""
        if self._batch is None:
            problem = "adlrns knows no timestep: the model it was applied to is not what is being called"
            if training:
                raise ValueError(f"{problem}; call that model, or write bins=1")
            if not self._warned:
                logger.warning("%s. All directions are used", problem)
                self._warned = True
        return self._batch

    def set(self, timesteps: Tensor, largest: float) -> None:
        """A timestep for each sample, or one for all."""
        bins = (timesteps.detach().double().flatten() * (self.count / largest)).clamp(0, self.count - 1)
        if not bool(bins.isfinite().all()):
            raise ValueError(f"a timestep is not finite: {timesteps}")
        self._batch = Batch(bins.long().tolist())

    def attach(self, model: nn.Module) -> None:
        """Reads the timestep of every call of `model`. Raises ValueError where its forward has none."""
        self.detach()
        if type(model).forward is nn.Module.forward:
            return  # the skeleton of a forecast, which nobody calls
        parameters = list(inspect.signature(model.forward).parameters)
        name = next((each for each in _ARGUMENTS if each in parameters), None)
        if name is None and self.count > 1:
            raise ValueError(
                f"{type(model).__name__}.forward({', '.join(parameters)}) has no {' or '.join(_ARGUMENTS)}; "
                "write bins=1"
            )
        place = parameters.index(name) if name else 0
        fractions = any(each.__name__ in _FRACTIONS for each in type(model).__mro__)
        largest = self.timesteps or (1.0 if fractions else 1000.0)

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            if not torch.is_grad_enabled():  # a look aside, such as a prior's; the backward of the last one is to come
                self._before.append((self._batch, self.samples))
            value = 0.0 if name is None else kwargs[name] if name in kwargs else args[place]
            self.set(torch.as_tensor(value), largest)
            first = next(
                (each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.dim() > 1), None
            )
            self.samples = 1 if first is None else first.shape[0]

        def after(_: nn.Module, __: Any, output: Any) -> None:
            if not torch.is_grad_enabled():
                self._batch, self.samples = self._before.pop()
            elif self.probing and self._batch is not None:
                self._watch(output, self._batch)

        self._handles = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after, always_call=True),
        ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self, output: Any, batch: Batch) -> None:
        held = output if isinstance(output, (tuple, list, dict)) else getattr(output, "__dict__", {})
        candidates = [output, *(held.values() if isinstance(held, dict) else held)]
        tensor = next((each for each in candidates if isinstance(each, Tensor) and each.requires_grad), None)
        if tensor is not None:
            tensor.register_hook(lambda gradient: self._observe(gradient, batch))

    @torch.no_grad()
    def _observe(self, gradient: Tensor, batch: Batch) -> None:
        samples = gradient.shape[0]
        square = (gradient.float() * samples).flatten(1).square().sum(1, keepdim=True)
        rows = torch.cat([torch.ones_like(square), square, square * gradient[0].numel()], 1).where(square.isfinite(), 0)
        if self.output is None:
            self.output = torch.zeros(self.count, 3, device=rows.device)
        self.output.index_add_(0, batch.tensor(samples, rows.device), rows)
