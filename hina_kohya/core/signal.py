"""What flows through a chain: the tensors of one bucket chunk at one step."""

import dataclasses as dc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Enter = Callable[[Tensor, Tensor], Tensor]
Leave = Callable[[Tensor, Tensor, Tensor | float], Tensor]


def _unchanged(_momentum: Tensor, incoming: Tensor) -> Tensor:
    return incoming


def _itself(momentum: Tensor, _incoming: Tensor, _weight: Tensor | float) -> Tensor:
    return momentum


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
    others: Tensor = None  # type: ignore[assignment]  # [N, ...] of other matrices, where the technique `couples` or `pools`
    peak: Tensor = None  # type: ignore[assignment]  # what the scheduler multiplies; read with `product`
    product: tuple[Tensor, ...] = ()  # of the product the matrix is part of; read by the properties below
    enter: Enter = _unchanged  # (momentum, incoming) -> what is averaged into the momentum; set by stage TORQUE
    leave: Leave = _itself  # (momentum, what entered, weight) -> what the update is made of; set by stage TORQUE

    @property
    def cofactor_rank(self) -> Tensor:
        """[N, 1, 1] `Member.cofactor_rank`."""
        return self._of_product(0)

    @property
    def longest(self) -> Tensor:
        """[N, 1, 1] longer side of W = B A, 0 where there is no pair."""
        return self._of_product(1)

    @property
    def rank(self) -> Tensor:
        """[N, 1, 1] what its factors share, 0 where there is no pair."""
        return self._of_product(2)

    @property
    def scale(self) -> Tensor:
        """[N, 1, 1] what the module multiplies W by, 1 where nobody said it."""
        return self._of_product(3)

    @property
    def alpha_factor(self) -> Tensor:
        """[N, 1, 1] one over the root of `scale` where that is below 1, and 1 elsewhere."""
        return self._of_product(4)

    def _of_product(self, row: int) -> Tensor:
        assert self.product, "a technique that reads it says so by `reads_product`"
        return self.product[row]

    def but(self, **changes: Any) -> "Signal":
        """A copy with these fields changed. `dataclasses.replace` would be a fifth of a step's Python time."""
        if torch.compiler.is_compiling():  # what is below, or `replace`, would break torch 2.6's graph
            return Signal(**{name: changes.get(name, getattr(self, name)) for name in _FIELDS})
        copy = object.__new__(Signal)
        copy.__dict__.update(self.__dict__, **changes)
        return copy

    def scalar(self, value: Tensor) -> Tensor:
        """A float64 [N, 1, 1] tensor in the compute dtype."""
        return value.to(self.before.dtype)


_FIELDS = tuple(field.name for field in dc.fields(Signal))


@dc.dataclass(frozen=True)
class Pool:
    """K numbers of every matrix, by param group, for a technique that compares them or adds them up."""

    values: Tensor  # float64 [G, M, K]
    there: Tensor  # bool [G, M]: false where a group has fewer than M matrices
    ties: Tensor  # [G, M, K] each matrix itself and its ties, as places in the flattened table; G * M is nobody

    def tied(self, x: Tensor) -> Tensor:
        """[G, M, K] of ``x`` [G, M]; 0 for nobody."""
        return torch.cat([x.flatten(), x.new_zeros(1)])[self.ties]
