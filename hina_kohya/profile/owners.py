"""Whose a step is: everything between two marks is charged to the technique that is at work.

Nothing of this is in a training: the marks are put around the functions of the machine while a step is measured, and
taken away after it.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from hina_kohya.core.bucket import Bucket
from hina_kohya.core.coupling import Coupling
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.pooling import Pooling
from hina_kohya.core.state.slab import Slab
from hina_kohya.core.technique import Stage


class Owner(NamedTuple):
    """A technique by name, or a part of the machine; ``codec``: it reads or writes its state."""

    name: str
    codec: bool = False


GATHER = Owner("gather, scatter")
PAIRS = Owner("look for pairs")
REST = Owner("rest of the step")
MACHINE = (GATHER.name, PAIRS.name, REST.name)


class Meter:
    """Readings of a clock or a counter, one whenever the owner changes; `begin`, then the step, then `totals`.

    reading: what the clock or the counter says now
    between: what passed between two readings
    """

    def __init__(self, reading: Callable[[], Any], between: Callable[[Any, Any], Any] = lambda a, b: b - a):
        self._reading, self._between = reading, between
        self._owners = [REST]
        self._marks: list[tuple[Owner, Any]] = []

    def begin(self) -> None:
        self._marks = [(REST, self._reading())]

    def enter(self, owner: Owner) -> None:
        self._mark()
        self._owners.append(owner)

    def leave(self) -> None:
        self._mark()
        self._owners.pop()

    @property
    def owner(self) -> Owner:
        return self._owners[-1]

    def _mark(self) -> None:
        self._marks.append((self._owners[-1], self._reading()))

    def totals(self) -> dict[Owner, Any]:
        """By owner, without what ran within it for another; together the whole step."""
        self._mark()
        result: dict[Owner, Any] = defaultdict(int)
        for (_, before), (owner, after) in itertools.pairwise(self._marks):
            result[owner] = result[owner] + self._between(before, after)
        return dict(result)


class Spans(Meter):
    """Names the owners for torch's profiler instead of measuring them."""

    def __init__(self, span: Callable[[str], Any]):
        super().__init__(lambda: None)
        self._span = span
        self._spans: list[Any] = []

    def enter(self, owner: Owner) -> None:
        self._owners.append(owner)
        self._spans.append(self._span(f"{owner.name}: state" if owner.codec else owner.name))
        self._spans[-1].__enter__()

    def leave(self) -> None:
        self._owners.pop()
        self._spans.pop().__exit__(None, None, None)


@contextmanager
def charged(optimizer: HinaOptimizer, meter: Meter) -> Iterator[None]:
    """Within it, steps of this optimizer tell the meter who is at work."""
    with ExitStack() as marks:

        def mark(cls: type, method: str, owner_of: Callable[[Any], Owner], only_alone: bool = False) -> None:
            marks.enter_context(_marked(cls, method, owner_of, meter, only_alone))

        for technique in {type(technique): technique for p in optimizer.parameters() for technique in p.chain}.values():
            methods = ("enter", "leave") if technique.stage is Stage.TORQUE else ("apply",)
            for method in methods:
                mark(type(technique), method, lambda self: Owner(self.name))
        for method in ("read", "write"):
            mark(Slab, method, lambda slab: Owner(slab.key.partition(".")[0], codec=True))
        for cls, method in ((Coupling, "publish"), (Coupling, "others"), (Pooling, "publish"), (Pooling, "others")):
            mark(cls, method, lambda exchange: Owner(exchange.technique.name))
        for method in ("gather", "scatter"):  # what is gathered to be published is the technique's
            mark(Bucket, method, lambda _: GATHER, only_alone=True)
        if type(optimizer)._before_step is not HinaOptimizer._before_step:
            mark(type(optimizer), "_before_step", lambda _: PAIRS)
        yield


@contextmanager
def _marked(cls: type, method: str, owner_of: Callable[[Any], Owner], meter: Meter, only_alone: bool) -> Iterator[None]:
    original = getattr(cls, method)

    @functools.wraps(original)
    def marked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if only_alone and meter.owner is not REST:
            return original(self, *args, **kwargs)
        meter.enter(owner_of(self))
        try:
            return original(self, *args, **kwargs)
        finally:
            meter.leave()

    is_own = method in vars(cls)
    setattr(cls, method, marked)
    try:
        yield
    finally:
        if is_own:
            setattr(cls, method, original)
        else:
            delattr(cls, method)


def state_bytes(optimizer: HinaOptimizer) -> dict[str, int]:
    """By technique, bytes of its slabs and index tables; what is left of the whole is under `REST`'s name."""
    plan = optimizer.plan()
    result: dict[str, int] = defaultdict(int)
    for bucket in plan.buckets:
        for (technique, _), slab in bucket.slabs.items():
            result[technique] += slab.nbytes()
    for each in plan.exchanges:
        result[each.technique.name] += each.nbytes()
    result[REST.name] = plan.nbytes() - sum(result.values())
    return dict(result)
