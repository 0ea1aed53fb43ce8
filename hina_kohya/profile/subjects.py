"""Optimizers that are stepped beside each other, each with parameters of its own."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hina_kohya.check.forecast.optimizer import Chosen, stored_bytes
from hina_kohya.core import registry
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.optim import report
from hina_kohya.profile.clock import spread, timed
from hina_kohya.profile.owners import MACHINE, Meter, Owner, charged, state_bytes
from hina_kohya.profile.recorder import Recorder
from hina_kohya.profile.rows import Counts, Part, Row

Groups = Sequence[Mapping[str, Any]]  # "params": (name or None, tensor) of each parameter


class Subject:
    """One optimizer with copies of the parameters, so that no other's step leaves them in cache.

    The gradients are everybody's. Raises UserError for arguments that the optimizer refuses.
    """

    def __init__(self, name: str, chosen: Chosen, groups: Groups, gradients: Sequence[Tensor]):
        self.name, self.path = name, f"{chosen.cls.__module__}.{chosen.cls.__qualname__}"
        self.device = gradients[0].device
        grads = iter(gradients)
        own = [
            {**group, "params": [_own(name, param, next(grads), chosen.ours) for name, param in group["params"]]}
            for group in groups
        ]
        self.optimizer: Any = chosen.build(own)
        self._wall: list[float] = []
        self._cpu: list[float] = []
        self._shares: list[dict[Owner, float]] = []

    @property
    def is_told_apart(self) -> bool:
        """Whether its techniques can be: compiled, all are one graph."""
        return isinstance(self.optimizer, HinaOptimizer) and not self.optimizer._compile

    def step(self) -> None:
        self.optimizer.step()

    def measure(self) -> None:
        """One step as it is; then, of ours, one in which each technique is timed."""
        wall, cpu = timed(self.optimizer.step, self.device)
        self._wall.append(wall)
        self._cpu.append(cpu)
        if self.is_told_apart:
            clock = _clock(self.device)
            with charged(self.optimizer, clock):
                clock.begin()
                self.optimizer.step()
                self._shares.append(clock.totals())

    def row(self) -> Row:
        wall = spread(self._wall)
        whole, shares = self._counts()
        return Row(
            self.name,
            self.path,
            kept_bytes(self.optimizer),
            whole,
            wall["median"],
            wall["iqr"],
            spread(self._cpu)["median"],
            tuple(self._parts(shares)) if self.is_told_apart else (),
        )

    def _counts(self) -> tuple[Counts | None, dict[Owner, Any]]:
        """Of one more step: in all, and by owner; None where a compiled chain hides them."""
        if getattr(self.optimizer, "_compile", False):
            return None, {}
        with Recorder(self.device) as recorder:
            meter = Meter(lambda: np.array([recorder.operations.total(), recorder.launches, recorder.nbytes]))
            with charged(self.optimizer, meter) if self.is_told_apart else nullcontext():
                meter.begin()
                self.optimizer.step()
                shares = meter.totals()
        return _counts(shares.values()), shares

    def _parts(self, counts: Mapping[Owner, Any]) -> Iterator[Part]:
        acting, kept = report.features(self.optimizer), state_bytes(self.optimizer)
        machine = {owner.name for step in self._shares for owner in step} & set(MACHINE)
        for name in (*filter(acting.__contains__, registry.techniques()), *filter(machine.__contains__, MACHINE)):
            whole, codec = Owner(name), Owner(name, codec=True)
            own = spread([step.get(whole, 0.0) + step.get(codec, 0.0) for step in self._shares])
            yield Part(
                name,
                acting[name]["parameters"] if name in acting else None,
                kept.get(name, 0),
                _counts(counts[owner] for owner in (whole, codec) if owner in counts),
                own["median"],
                own["iqr"],
                spread([step.get(codec, 0.0) for step in self._shares])["median"],
            )


def kept_bytes(optimizer: Any) -> int:
    """Everything kept between steps: our optimizers' own account, of others the storage behind their state."""
    if isinstance(optimizer, HinaOptimizer):
        return report.memory(optimizer)["state_bytes"]
    return stored_bytes(optimizer.state)


def _own(name: str | None, param: Tensor, gradient: Tensor, is_named: bool) -> Any:
    own = torch.nn.Parameter(param.detach().clone())
    vars(own).update(vars(param))
    own.grad = gradient  # nobody writes into it
    return (name, own) if is_named and name is not None else own


def _counts(shares: Iterable[Any]) -> Counts:
    return Counts(*(int(number) for number in sum(shares, np.zeros(3, np.int64))))


def _clock(device: torch.device) -> Meter:
    """Seconds by owner: on a GPU by events in its stream, so that nothing waits within the step."""
    if device.type != "cuda":
        return Meter(time.perf_counter)

    def reading() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event

    def between(before: torch.cuda.Event, after: torch.cuda.Event) -> float:
        after.synchronize()
        return before.elapsed_time(after) / 1e3

    return Meter(reading, between)
