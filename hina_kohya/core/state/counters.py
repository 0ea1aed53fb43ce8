"""Steps that each parameter took, and how often its gradient was not finite, so that it was left as it is.

The device counts steps, the host gradients. Their difference is read without waiting: `send` starts a copy to the host,
and `arrived` reads it some steps later. What has not arrived by then is an older number, never a wrong one.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.bucket import Bucket, to_device

logger = logging.getLogger("hina_kohya")

EVERY = 20  # steps between two copies
LISTED = 5


class Counters:
    """One table a device, of which each bucket has a slice: ``steps`` int32 on the device, ``tried`` on the host."""

    def __init__(self, buckets: Sequence[Bucket]):
        self.tables: list[_Table] = []
        for device in dict.fromkeys(bucket.key.device for bucket in buckets):
            self.tables.append(_Table([bucket for bucket in buckets if bucket.key.device == device]))

    def begin(self) -> None:
        """From here on skipped steps are counted."""
        for table in self.tables:
            table.start = table.steps.clone()

    def send(self) -> None:
        for table in self.tables:
            table.host.copy_(table.skipped(), non_blocking=True)

    def arrived(self) -> Counter[int]:
        """Skipped steps by parameter index, as of some `send` before."""
        return Counter({i: n for table in self.tables for i, n in table.of(table.host)})

    def skipped(self) -> Counter[int]:
        """As of now; waits for the device."""
        return Counter({i: n for table in self.tables for i, n in table.of(table.skipped().cpu())})

    def nbytes(self) -> int:
        return sum(3 * table.steps.nbytes + table.tried.nbytes for table in self.tables)  # steps, start, host


class _Table:
    def __init__(self, buckets: Sequence[Bucket]):
        self.indices = [index for bucket in buckets for index in bucket.indices]
        self.device = buckets[0].key.device
        self.steps = torch.zeros(len(self.indices), dtype=torch.int32, device=self.device)
        self.tried = np.zeros(len(self.indices), dtype=np.int32)
        self.start = self.steps.clone()
        host = torch.from_numpy(np.zeros(len(self.indices), dtype=np.int32))
        self.host = host.pin_memory() if self.device.type == "cuda" else host
        place = 0
        for bucket in buckets:
            bucket.steps = self.steps[place : place + len(bucket)]
            bucket.tried = self.tried[place : place + len(bucket)]
            place += len(bucket)

    def skipped(self) -> Tensor:
        return to_device(self.tried.copy(), self.device) - (self.steps - self.start)

    def of(self, counts: Tensor) -> list[tuple[int, int]]:
        found = counts.numpy()
        return [(self.indices[row], int(found[row])) for row in np.flatnonzero(found)]


class SkippedSteps:
    """Those of a whole run, across plans, and what was said of them: at first, and whenever they have doubled."""

    def __init__(self) -> None:
        self.earlier: Counter[int] = Counter()
        self._said = self._calls = 0

    def look(self, counters: Counters, name: Callable[[int], str], count: int) -> None:
        """After a step of ``count`` parameters."""
        self._calls += 1
        if self._calls % EVERY == 0:
            self.say(self.earlier + counters.arrived(), name, count)
            counters.send()

    def until_now(self, counters: Counters | None) -> Counter[int]:
        return self.earlier + (Counter() if counters is None else counters.skipped())

    def say(self, skipped: Counter[int], name: Callable[[int], str], count: int) -> None:
        if skipped.total() < max(1, 2 * self._said):
            return
        self._said = skipped.total()
        listed = ", ".join(f"{name(index)} ({steps} steps)" for index, steps in skipped.most_common(LISTED))
        more = ", ..." if len(skipped) > LISTED else ""
        spread = (
            "; all at once: one NaN is enough where gradients are clipped by their common norm"
            if len(skipped) == count > 1
            else ""
        )
        logger.warning(
            "gradients that are not finite: %d of %d parameters were left as they were, %s%s%s",
            len(skipped), count, listed, more, spread,
        )  # fmt: skip
