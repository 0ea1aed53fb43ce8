"""The plan of a step: which parameters form which buckets, with which chain, and who is coupled to whom."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core import frames
from hina_kohya.core.bucket import Bucket, Key
from hina_kohya.core.chain import Chain
from hina_kohya.core.exchange import exchanges
from hina_kohya.core.groups import BetaChanges, retimed_chain
from hina_kohya.core.parameter import Parameter, is_frozen
from hina_kohya.core.pooling import Pooling
from hina_kohya.core.rates import Rates
from hina_kohya.core.state.codec import Codec
from hina_kohya.core.state.counters import Counters
from hina_kohya.core.state.slab import Rows, saved_parts
from hina_kohya.core.technique import Stage, Technique

SWAPPED = 2  # steps in a row that a bucket's parameters are on another device before its state follows them


def keep_freed_memory() -> None:
    """Lets the C library reuse the step's temporaries instead of returning them to the system page by page.

    glibc raises that threshold to the largest block it ever took back. A training process frees such blocks in its
    forward pass; one that has not yet would spend three quarters of a CPU step in page faults.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


class Plan:
    """Buckets and exchanges for the parameters as they are now; built again when they are cast, moved or added.

    A parameter with an empty chain is frozen: it has no state, and is only read where a partner looks at it.
    """

    def __init__(self, parameters: Sequence[Parameter], codec: Codec):
        keep_freed_memory()
        by_key: dict[Key, list[int]] = defaultdict(list)
        for index, each in enumerate(parameters):
            if each.tensor.numel():
                partner = None if each.member.partner is None else parameters[each.member.partner].tensor
                by_key[Key.of(each.tensor, each.chain, partner)].append(index)
        buckets = frames.buckets(by_key, parameters, codec)
        self.buckets = [bucket for bucket in buckets if bucket.chain]
        self.frozen = [bucket for bucket in buckets if not bucket.chain]
        self.counters, self.rates = Counters(self.buckets), Rates(self.buckets)
        self.exchanges = exchanges(buckets, parameters)
        self._away = 0

    def fits(self) -> bool:
        return not self._thawed() and all(bucket.of_dtype() for bucket in (*self.buckets, *self.frozen))

    def _thawed(self) -> bool:
        return any(not is_frozen(param) for bucket in self.frozen for param in bucket.params)

    def follows(self) -> bool:
        """Once a step: whether the parameters are, or will soon be again, where the state is.

        Blocks that are swapped in and out are stepped where their state is; what has moved for good takes it along.
        """
        is_away = any(bucket.elsewhere() for bucket in (*self.buckets, *self.frozen))
        self._away = self._away + 1 if is_away else 0
        started = any(bucket.tried.any() for bucket in self.buckets)
        return not self._away or (started and self._away < SWAPPED)

    def retime(self, changes: BetaChanges) -> bool:
        """Changes betas in the chains, by group from and to; False where a bucket would have to be split for it."""
        chains: list[Chain] = []
        coupled: dict[Technique, set[Technique]] = defaultdict(set)
        for bucket in self.buckets:
            groups = set(bucket.groups.tolist())
            fresh = {retimed_chain(bucket.chain, *changes[g]) if g in changes else bucket.chain for g in groups}
            chains.append(fresh.pop())
            for before, after in zip(bucket.chain, chains[-1], strict=True):
                coupled[before].add(after)
            if fresh:
                return False
        coupling = [each for each in self.exchanges if each.technique.couples]
        if any(len(coupled[each.technique]) > 1 for each in coupling):
            return False
        for bucket, chain in zip(self.buckets, chains, strict=True):
            bucket.chain = chain
        for each in coupling:
            (each.technique,) = coupled[each.technique]
        return True

    def adopt(self, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Takes over what `state` knows: from a checkpoint, or from the plan before this one."""
        for bucket in self.buckets:
            for row, param in enumerate(bucket.params):
                if known := state.get(param):
                    if not _moment_is_new(bucket.chain, known):
                        bucket.steps[row] = known.get("step", 0)
                    for slab in bucket.slabs.values():
                        if saved := saved_parts(known, slab.key):
                            slab.adopt(row, saved)
        self.counters.begin()

    def show(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Shows every row under its parameter, as views, in place of what was there."""
        for bucket in self.buckets:
            for row, param in enumerate(bucket.params):
                entry: dict[str, Any] = {"step": bucket.steps[row]}
                for slab in bucket.slabs.values():
                    entry.update(slab.views(row, param.shape))
                state[param].clear()
                state[param].update(entry)

    def publish(self) -> None:
        """Reads parameters and state as they are before the step, for those that look at others."""
        for each in self.exchanges:
            each.publish()

    def others(self, bucket: Bucket, rows: Rows) -> dict[str, Tensor]:
        """By technique, what it sees of other matrices for these rows."""
        return {each.technique.name: each.others(bucket, rows) for each in self.exchanges if each.serves(bucket)}

    def forget(self) -> None:
        for each in self.exchanges:
            each.forget()

    def poolings(self) -> list[Pooling]:
        return [each for each in self.exchanges if isinstance(each, Pooling)]

    def nbytes(self) -> int:
        """Everything allocated for state: slabs, index tables and step counters."""
        return sum(part.nbytes() for part in (*self.buckets, self.counters, *self.exchanges))


def _moment_is_new(chain: Chain, known: Mapping[str, Any]) -> bool:
    """Whether the averages start from nothing, so that their bias corrections have to start with them."""
    moment = next(technique for technique in chain if technique.stage is Stage.MOMENT)
    return bool(moment.kept()) and not any(f"{moment.name}.{slot}" in known for slot in moment.kept())
