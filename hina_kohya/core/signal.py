"""What flows through a chain: the tensors of one bucket chunk at one step."""

import dataclasses as dc
from collections.abc import Callable
from typing import Any

from torch import Tensor

Enter = Callable[[Tensor, Tensor], Tensor]


def _unchanged(_momentum: Tensor, incoming: Tensor) -> Tensor:
    return incoming


@dc.dataclass(frozen=True)
class Signal:
    """N matrices of one shape. A technique returns a new Signal (`s.but(...)`) and never writes into a tensor it got.

    Large tensors are [N, m, n] in the compute dtype (fp32, or fp64 for fp64 parameters); scalars are float64
    [N, 1, 1] tensors, so that bias corrections and step sizes are rounded once, as Python scalars would be.
    """

    before: Tensor  # the parameters before the step
    param: Tensor  # the parameters; changed from stage DECAY on
    raw: Tensor  # the gradient as autograd left it
    grad: Tensor  # the gradient after stage GRADIENT
    lr: Tensor  # learning rate of the param group
    decay: Tensor  # weight decay of the param group, 0 for roles that do not decay
    step: Tensor  # 1 at a parameter's first step
    update: Tensor = None  # type: ignore[assignment]  # what will be subtracted, learning rate included; from MOMENT on
    direction: Tensor = None  # type: ignore[assignment]  # the update before masks, for techniques that ask for its sign
    cofactors: Tensor | None = None  # [N, K, ...] what the running technique's `publish` gave for the K partners
    cofactor_rank: Tensor | None = None  # [N, 1, 1] inner rank of the product the matrix is part of
    enter: Enter = _unchanged  # (momentum, incoming) -> what is averaged into the momentum; set by stage TORQUE

    def but(self, **changes: Any) -> "Signal":
        """A copy with these fields changed. `dataclasses.replace` would be a fifth of a step's Python time."""
        copy = object.__new__(Signal)
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def scalar(self, value: Tensor) -> Tensor:
        """A float64 [N, 1, 1] tensor in the compute dtype."""
        return value.to(self.before.dtype)
