"""What a step did, as scalars beside the trainer's own: by param group and by block of the model, every k steps.

Two hooks on the optimizer measure on the device; nothing is read before the trainer logs. A step that is not measured
costs a count. No number of the training changes.
"""

import dataclasses as dc
import logging
import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.loras.summary import blocks_of_names
from hina_kohya.optim import report
from hina_kohya.parameters import roles
from hina_kohya.trainers.watcher import Watcher, shares_by_group

logger = logging.getLogger("hina_kohya")

UNNAMED = "unnamed"  # the block of parameters whose names the optimizer does not know
_hooked: "weakref.WeakKeyDictionary[Optimizer, Scalars | None]" = weakref.WeakKeyDictionary()


def read(optimizer: Optimizer, every: int, groups: Sequence[str]) -> dict[str, float]:
    """What `Scalars.read` says of an optimizer, which is measured from the first call on. every: steps, at least 1."""
    if optimizer not in _hooked:
        runs = runs_step_hooks(optimizer)
        _hooked[optimizer] = Scalars(optimizer, every) if runs else None
        if not runs:
            name = type(optimizer).__name__
            logger.warning("hina-kohya: %s does not run torch's step hooks, so no hina/... scalars are logged", name)
    scalars = _hooked[optimizer]
    return {} if scalars is None else scalars.read(optimizer, groups)


def runs_step_hooks(optimizer: Optimizer) -> bool:
    """False for classes that do not call torch's constructor, as wrappers of other optimizers sometimes do not."""
    return hasattr(optimizer, "_optimizer_step_pre_hooks") and getattr(type(optimizer).step, "hooked", False)


def release() -> None:
    """Takes all hooks off again."""
    for optimizer, scalars in list(_hooked.items()):
        if scalars is not None:
            scalars.release(optimizer)
    _hooked.clear()


@dc.dataclass(frozen=True)
class _Measured:
    """One step of an optimizer, on the device.

    places : of the parameters, by param group and index in it
    norms  : by device and dtype, [2, P]: norms of the parameters after the step, and of what it changed
    shares : of `Watcher`
    """

    places: list[tuple[int, int]]
    norms: list[Tensor]
    shares: list[tuple[str, np.ndarray, Tensor]]


class Scalars:
    """Measures every `every`-th step of one optimizer, which it does not hold, until `release`."""

    def __init__(self, optimizer: Optimizer, every: int):
        self.every, self.steps = every, 0
        self._before: list[tuple[list[tuple[int, int]], list[Tensor], list[Tensor]]] = []
        self._watch: Watcher | None = None
        self._measured: _Measured | None = None
        self._blocks: tuple[list[int], list[list[str]]] = [], []
        self._handles = (optimizer.register_step_pre_hook(self._begin), optimizer.register_step_post_hook(self._end))

    def release(self, optimizer: Optimizer) -> None:
        for handle in self._handles:
            handle.remove()
        self._forget(optimizer)

    def _forget(self, optimizer: Optimizer) -> None:
        self._before, self._watch = [], None
        if isinstance(optimizer, HinaOptimizer):
            optimizer.watcher = None

    @torch.no_grad()
    def _begin(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        self.steps += 1
        self._forget(optimizer)  # where the step before ended in an error
        if self.steps % self.every:
            return
        for places, params in _alike(optimizer):
            copies = [torch.empty_like(param) for param in params]
            torch._foreach_copy_(copies, params)
            self._before.append((places, params, copies))
        if isinstance(optimizer, HinaOptimizer):
            self._watch = optimizer.watcher = Watcher()

    @torch.no_grad()
    def _end(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if not self._before:
            return
        norms = []
        for _, params, changes in self._before:
            torch._foreach_sub_(changes, params)
            exact = torch.float64 if params[0].dtype == torch.float64 else torch.float32
            both = [torch.stack(torch._foreach_norm(each, 2, dtype=exact)) for each in (params, changes)]
            norms.append(torch.stack(both))
        places = [place for places, *_ in self._before for place in places]
        self._measured = _Measured(places, norms, [] if self._watch is None else self._watch.shares)
        self._forget(optimizer)

    def read(self, optimizer: Optimizer, groups: Sequence[str]) -> dict[str, float]:
        """The scalars of a step that was measured and not read yet, by tag; waits for the device once.

        groups: what the trainer calls the param groups
        """
        measured, self._measured = self._measured, None
        if measured is None:
            return {}
        ours = _Ours.of(optimizer) if isinstance(optimizer, HinaOptimizer) else _Ours()
        tensors = [*measured.norms, *(parts for *_, parts in measured.shares), *ours.tensors()]
        numbers = iter(_to_host(tensors))
        norms = np.concatenate([next(numbers).reshape(2, -1) for _ in measured.norms], axis=1)
        shares = [(what, own, next(numbers).reshape(2, -1)) for what, own, _ in measured.shares]
        blocks = self._by_block(optimizer, measured.places, norms)
        by_group = shares_by_group(shares, groups) | ours.scalars(numbers, groups)
        return blocks | by_group | self._importance(ours.importance, list(numbers))

    def _by_block(self, optimizer: Optimizer, places: list[tuple[int, int]], norms: np.ndarray) -> dict[str, float]:
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if self._blocks[0] != sizes:
            self._blocks = sizes, _blocks(optimizer)
        squares: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        for (group, index), column in zip(places, norms.T, strict=True):
            squares[self._blocks[1][group][index]] += column.astype(np.float64) ** 2
        found = {block: np.sqrt(squares[block]) for block in sorted(squares)}
        return {f"hina/weight_norm/{block}": float(weight) for block, (weight, _) in found.items()} | {
            f"hina/update_ratio/{block}": float(change / weight)
            for block, (weight, change) in found.items()
            if weight or math.isnan(weight)
        }

    def _importance(
        self, counted: Sequence[tuple[np.ndarray, np.ndarray, Tensor]], means: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """Means over the entries of each block."""
        names = [block for group in self._blocks[1] for block in group]
        totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
        for (indices, entries, _), own in zip(counted, means, strict=True):
            for index, count, mean in zip(indices, entries, own, strict=True):
                totals[names[index]] += count * mean, count
        return {f"hina/importance/{block}": float(total / count) for block, (total, count) in sorted(totals.items())}


@dc.dataclass(frozen=True)
class _Ours:
    """What optimizers of ours know besides, after the step; tensors on their devices.

    rates: sums of effective learning rates over the elements of each group, and the elements; earlier: steps skipped
    before the plan that is stepped now; importance: of `report.importance`
    """

    rates: tuple[Tensor, ...] = ()
    elements: np.ndarray | None = None
    skipped: tuple[Tensor, ...] = ()
    spikes: tuple[Tensor, ...] = ()
    earlier: int = 0
    importance: tuple[tuple[np.ndarray, np.ndarray, Tensor], ...] = ()

    @classmethod
    def of(cls, optimizer: HinaOptimizer) -> "_Ours":
        skipped, earlier = report.skipped_counts(optimizer)
        spikes, importance = report.spike_counts(optimizer), report.importance(optimizer)
        rates = report.effective_totals(optimizer)
        return cls(tuple(rates), report.elements(optimizer), tuple(skipped), tuple(spikes), earlier, tuple(importance))

    def tensors(self) -> list[Tensor]:
        return [*self.rates, *self.skipped, *self.spikes, *(means for *_, means in self.importance)]

    def scalars(self, numbers: Iterator[np.ndarray], groups: Sequence[str]) -> dict[str, float]:
        """Those by group and of the whole; numbers: of `tensors`, of which the importance is left."""
        if self.elements is None:
            return {}
        totals = sum((next(numbers) for _ in self.rates), np.zeros(len(groups)))
        rates = {
            f"hina/effective_lr/{name}": float(total / count)
            for name, total, count in zip(groups, totals, self.elements, strict=True)
            if count
        }
        skipped = self.earlier + sum(float(next(numbers).sum()) for _ in self.skipped)
        spikes = [float(next(numbers).sum()) for _ in self.spikes]
        return rates | {"hina/skipped": skipped} | ({"hina/spikes": sum(spikes)} if spikes else {})


def _alike(optimizer: Optimizer) -> Iterator[tuple[list[tuple[int, int]], list[Tensor]]]:
    """The trained parameters and their places, those of one device and dtype together."""
    found: dict[tuple[torch.device, torch.dtype], list[tuple[tuple[int, int], Tensor]]] = defaultdict(list)
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            if param.requires_grad and param.numel():
                found[param.device, param.dtype].append(((number, index), param))
    for pairs in found.values():
        yield [place for place, _ in pairs], [param for _, param in pairs]


def _to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """All of them flat, in float64, in one transfer per device."""
    arrays: dict[int, np.ndarray] = {}
    for device in {tensor.device for tensor in tensors}:
        own = [number for number, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensors[number].detach().flatten().double() for number in own]).cpu().numpy()
        ends = np.cumsum([tensors[number].numel() for number in own])
        arrays |= dict(zip(own, np.split(flat, ends[:-1]), strict=True))
    return [arrays[number] for number in range(len(tensors))]


def _blocks(optimizer: Optimizer) -> list[list[str]]:
    """The block of every parameter, group by group, as `hina-kohya report` calls it."""
    shapes = [[tuple(param.shape) for param in group["params"]] for group in optimizer.param_groups]
    names = [
        group.get("param_names") or [None] * len(own) for group, own in zip(optimizer.param_groups, shapes, strict=True)
    ]
    members = iter(roles.resolve([each for own in names for each in own], [each for own in shapes for each in own]))
    modules = [[next(members).module for _ in own] for own in shapes]
    blocks = blocks_of_names(sorted({module for own in modules for module in own if module}))
    return [[blocks[module].replace("/", "_") if module else UNNAMED for module in own] for own in modules]
