"""Low-rank products on kept directions only: samples of one state together, each group with its slice of the factors.

Nothing is computed and masked afterwards. One group, the usual case, is neither sorted nor copied; a small batch is run
in its own order; a large one is sorted, once a forward.
"""

import dataclasses as dc
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FEW = 8  # runs of samples up to which sorting costs more than it saves


@dc.dataclass(frozen=True)
class Product:
    """The product of a layer, split in two: x -> hidden [.., r] (or [N, groups * r, ..]) -> the layer's output.

    op: F.linear or F.conv*d; where: stride, padding, dilation. With groups, every group of channels shares the factors:
    the pair stands for the weight `up @ down` of shape [out, in / groups, k..].
    """

    op: Callable[..., Tensor]
    where: dict[str, Any]
    groups: int = 1

    @property
    def linear(self) -> bool:
        return self.op is F.linear

    def hidden(self, x: Tensor, down: Tensor) -> Tensor:
        if self.linear:
            return F.linear(x, down)
        if self.groups == 1:
            return self.op(x, down, None, **self.where)
        apart = x.reshape(x.shape[0] * self.groups, -1, *x.shape[2:])
        return self.op(apart, down, None, **self.where).unflatten(0, (x.shape[0], self.groups)).flatten(1, 2)

    def expand(self, hidden: Tensor, up: Tensor) -> Tensor:
        return F.linear(hidden, up) if self.linear else self.op(hidden, up, None, groups=self.groups)

    def a_direction(self, values: Tensor, dims: int) -> Tensor:
        """Values of directions [r] or [N, r], to be multiplied with a hidden tensor of ``dims`` dimensions."""
        if self.linear:
            return values if values.dim() == 1 else values.view(len(values), *[1] * (dims - 2), -1)
        return values.repeat(*[1] * (values.dim() - 1), self.groups)[(..., *[None] * (dims - 2))]

    def a_sample(self, hidden: Tensor, samples: int) -> Tensor:
        """Hidden values summed over everything but direction and sample: [samples, r]."""
        if self.linear:
            return hidden.reshape(samples, -1, hidden.shape[-1]).sum(1)
        parts = hidden.reshape(samples, -1, self.groups, hidden.shape[1] // self.groups, *hidden.shape[2:])
        return parts.flatten(4).sum((1, 2, 4))

    def a_position(self, hidden: Tensor) -> Tensor:
        """Hidden values as rows: [positions of all samples and groups, r]."""
        if self.linear:
            return hidden.flatten(0, -2)
        return hidden.unflatten(1, (self.groups, -1)).movedim(2, -1).flatten(0, -2)


@dc.dataclass(frozen=True, eq=False)
class Directions:
    """Some directions of a pair of factors; `index` is None for the first `count`."""

    count: int
    index: Tensor | None = None

    def of(self, factor: Tensor, dim: int) -> Tensor:
        if self.index is not None:
            return factor.index_select(dim, self.index)
        return factor if self.count == factor.shape[dim] else factor.narrow(dim, 0, self.count)


def plan(kept: Tensor, device: torch.device) -> list[Directions]:
    """The directions of each state; states of equal sets share one object. kept: [K, R] bool."""
    known: dict[tuple[bool, ...], Directions] = {}
    return [known.setdefault(tuple(row), _directions(row, device)) for row in kept.tolist()]


def _directions(row: Sequence[bool], device: torch.device) -> Directions:
    chosen = [number for number, keep in enumerate(row) if keep]
    prefix = chosen == list(range(len(chosen)))
    return Directions(len(chosen), None if prefix else torch.tensor(chosen, device=device))


class Batch:
    """The states of a batch's samples, or of all of them at once, and the order in which equal ones are neighbours."""

    def __init__(self, states: Sequence[int]):
        self.states = tuple(states)
        self.mixed = len(set(self.states)) > 1
        self._made: dict[Any, Any] = {}

    def tensor(self, rows: int, device: torch.device) -> Tensor:
        """The state of each of ``rows`` rows; a sample's rows are neighbours."""
        return self._once(("states", rows, device), lambda: self._states(rows, device))

    def fit(self, rows: int) -> int:
        """Rows a sample. Raises ValueError."""
        if rows % len(self.states):
            raise ValueError(
                f"an input of {rows} rows cannot be shared among {len(self.states)} samples; write granularity=batch"
            )
        return rows // len(self.states)

    def order(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows sorted by state, and back; a sample's rows are neighbours."""
        return self._once(("order", rows, device), lambda: self._order(rows, device))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _states(self, rows: int, device: torch.device) -> Tensor:
        if not self.mixed:
            return torch.full((rows,), self.states[0], device=device)
        return torch.tensor(self.states, device=device).repeat_interleave(self.fit(rows))

    def _order(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        states = self._states(rows, torch.device("cpu"))
        order = states.argsort(stable=True)
        return order.to(device), order.argsort().to(device)


def grouped(
    x: Tensor, batch: Batch, directions: Sequence[Directions], run: Callable[[Tensor, Directions], Tensor]
) -> Tensor:
    """`run(rows of x, their directions)` for every group of samples, put together in the order of x.

    directions: one a state. Raises ValueError where the rows of x are not those of the batch's samples.
    """
    chosen = [directions[state] for state in batch.states]
    if all(each is chosen[0] for each in chosen):
        return run(x, chosen[0])
    each, neighbours = batch.fit(x.shape[0]), _neighbours(chosen)
    if len(neighbours) <= _FEW:
        return torch.cat(_parts(x, neighbours, each, run))
    order, back = batch.order(x.shape[0], x.device)
    neighbours = _neighbours([directions[state] for state in sorted(batch.states)])
    return torch.cat(_parts(x.index_select(0, order), neighbours, each, run)).index_select(0, back)


def _neighbours(chosen: Sequence[Directions]) -> list[tuple[Directions, int]]:
    return [(same, len(list(run))) for same, run in itertools.groupby(chosen)]


def _parts(
    rows: Tensor,
    neighbours: Sequence[tuple[Directions, int]],
    each: int,
    run: Callable[[Tensor, Directions], Tensor],
) -> list[Tensor]:
    parts, start = [], 0
    for same, count in neighbours:
        parts.append(run(rows.narrow(0, start, count * each), same))
        start += count * each
    return parts
