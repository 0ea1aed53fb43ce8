"""What every plan of a campaign can tell: which runs there are, which are done, and which other code made."""

import abc
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from .store import AnyRun, Record, Store


class Plan(abc.ABC):
    """The runs of a mode, in the order to do them. Those of a chosen learning rate are known when its trials are done.

    mode   : its name, and minutes, after which no run starts (0: no limit)
    skipped: what cannot run here -> why
    """

    mode: Any
    skipped: dict[str, str]

    @abc.abstractmethod
    def known(self, store: Any) -> list[Any]:
        """All runs that can be named by now."""

    @abc.abstractmethod
    def everything(self) -> list[Any]:
        """As many runs as there will be, with a guess for every learning rate that is not chosen yet."""

    @abc.abstractmethod
    def place(self, run: Any) -> dict[str, Any]:
        """What a run is counted under when the plan is shown, by column."""

    @abc.abstractmethod
    def code(self, run: Any) -> str | None:
        """Digest of our code that makes a run; None for a run without code of ours."""

    def taste(self, run: Any) -> Any:
        """A short run that tells what a step of this one costs; None where `guess` is good enough."""
        return None

    def alike(self, taste: Any) -> Hashable:
        """Of tastes that are equal here, the least time around the steps counts: a process's first also loads code."""
        return taste

    def guess(self, run: Any) -> float:
        """Seconds, before anything is measured."""
        return 10.0

    def complete(self, store: Store) -> bool:
        known = self.known(store)
        return len(known) == len(self.everything()) and all(store.get(run) for run in known)

    def stale(self, store: Store) -> set[str]:
        """Keys of runs that another version of our code made."""
        return {
            run.key
            for run in self.known(store)
            if (record := store.get(run)) and (code := self.code(run)) is not None and record["code"] != code
        }


def best_rate(runs: Sequence[AnyRun], store: Store, badness: Callable[[Record], float]) -> float | None:
    """The learning rate that is least bad in the mean over its runs; None until all are done."""
    records = [record for run in runs if (record := store.get(run))]
    if len(records) < len(runs):
        return None
    by_rate: dict[float, list[float]] = {}
    for record in records:
        by_rate.setdefault(record["lr"], []).append(badness(record))
    return min(by_rate, key=lambda lr: sum(by_rate[lr]) / len(by_rate[lr]))


def there_is(names: Iterable[str] | None, known: Iterable[str]) -> None:
    """Raises ValueError for a name that does not exist."""
    there = list(known)
    for name in names or ():
        if name not in there:
            raise ValueError(f"there is no {name!r}; there are {', '.join(there)}")
