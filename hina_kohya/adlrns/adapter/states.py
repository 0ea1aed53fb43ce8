"""The states that a network's modules are run in: read where the model is called, kept until it is called again."""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hina_kohya.adlrns.adapter.execution import Batch
from hina_kohya.adlrns.adapter.timesteps import Timesteps

logger = logging.getLogger("hina_kohya")


class States:
    """One object a network. `batch` is that of the running forward; in backward, where checkpoints compute again, that
    of the call whose turn it is. States are shares of the noise: 0 is next to the image, the last next to noise alone.

    count: states; whole: granularity=batch; probing: this step measures; balancing: also grams
    samples: of the same call as `batch`
    output: sums [K, 3] of 1, |g|^2 and |g|^2 * outputs over samples, g the gradient of a sample's loss by the output
    """

    def __init__(self, count: int, whole: bool = False, timesteps: float | None = None):
        self.count, self.whole, self.timesteps = count, whole, timesteps
        self.probing = self.balancing = False
        self.samples = 1
        self.output: Tensor | None = None
        self._batch: Batch | None = None
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

    def attach(self, model: nn.Module) -> None:
        """Reads the timestep of every call of `model`. Raises ValueError where its forward has none."""
        self.detach()
        if type(model).forward is nn.Module.forward:
            return  # the skeleton of a forecast, which nobody calls
        timesteps = self._timesteps_of(model)

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            values = timesteps.of(args, kwargs) if timesteps else torch.zeros(())
            self._batch = Batch(self._bins(timesteps.noise(values)) if timesteps and self.count > 1 else (0,))
            self.samples = values.numel() if timesteps and timesteps.one_a_sample(values) else _rows(args, kwargs)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            if torch.is_grad_enabled() and self._batch is not None:
                self._watch(output, self._batch, self.samples)

        self._handles = [
            model.register_forward_pre_hook(before, with_kwargs=True),
            model.register_forward_hook(after),
        ]

    def _timesteps_of(self, model: nn.Module) -> Timesteps | None:
        try:
            return Timesteps(model, self.timesteps)
        except ValueError:
            if self.count > 1:
                raise
            return None

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _bins(self, noise: Tensor) -> list[int]:
        return (noise * self.count).clamp(0, self.count - 1).long().tolist()

    def _watch(self, output: Any, batch: Batch, samples: int) -> None:
        """Backward through this call's output runs in its states; a probing step notes the gradients there."""
        held = output if isinstance(output, (tuple, list, dict)) else getattr(output, "__dict__", {})
        values = [output, *(held.values() if isinstance(held, dict) else held)]
        tensors = [each for each in values if isinstance(each, Tensor) and each.requires_grad]

        def resume(_: Tensor) -> None:
            self._batch, self.samples = batch, samples

        for tensor in tensors:
            tensor.register_hook(resume)
        if not self.probing:
            return
        if isinstance(output, list):  # Wan: one tensor for each sample
            for sample, tensor in enumerate(tensors):
                tensor.register_hook(functools.partial(self._observe, batch, samples, sample))
        elif tensors:
            tensors[0].register_hook(functools.partial(self._observe, batch, samples, None))

    @torch.no_grad()
    def _observe(self, batch: Batch, samples: int, sample: int | None, gradient: Tensor) -> None:
        """gradient: of the whole batch's output, or of that of one sample."""
        if sample is None:
            rows = samples if gradient.shape[0] % samples == 0 else gradient.shape[0]
            matrix, states = gradient.reshape(rows, -1), batch.tensor(rows, gradient.device)
        else:
            rows = samples
            matrix, states = gradient.reshape(1, -1), batch.tensor(rows, gradient.device)[sample : sample + 1]
        square = (matrix.float() * rows).square().sum(1, keepdim=True)
        sums = torch.cat([torch.ones_like(square), square, square * matrix.shape[1]], 1).where(square.isfinite(), 0)
        if self.output is None:
            self.output = torch.zeros(self.count, 3, device=sums.device)
        self.output.index_add_(0, states, sums)


def _rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Of the first tensor with more than one dimension, the latents of nearly every model."""
    first = next((each for each in (*args, *kwargs.values()) if isinstance(each, Tensor) and each.dim() > 1), None)
    return 1 if first is None else first.shape[0]
