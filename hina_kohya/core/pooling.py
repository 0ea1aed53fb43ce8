"""Pooled numbers: a few of every matrix, looked at together, and an answer to each of them."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.bucket import Bucket, to_device
from hina_kohya.core.parameter import Parameter
from hina_kohya.core.signal import Pool
from hina_kohya.core.state.slab import Rows
from hina_kohya.core.technique import Technique


class Pooling:
    """The table of one technique: a row a param group, in the order of the parameters.

    Reading and answering are gathers and sums along an axis, so the same on every rank and in every run.
    """

    def __init__(self, technique: Technique, buckets: Sequence[Bucket], parameters: Sequence[Parameter]):
        self.technique = technique
        self.buckets = [bucket for bucket in buckets if self.serves(bucket)]
        self.device = self.buckets[0].key.device
        order = [index for bucket in self.buckets for index in bucket.indices]
        by_group: dict[int, list[int]] = defaultdict(list)
        for index in sorted(order):
            by_group[parameters[index].group].append(index)
        self.shape = len(by_group), max(map(len, by_group.values()))
        self.places = {
            index: row * self.shape[1] + column
            for row, group in enumerate(sorted(by_group))
            for column, index in enumerate(by_group[group])
        }
        places = np.array([self.places[index] for index in order])
        cells, nobody = self.shape[0] * self.shape[1], self.shape[0] * self.shape[1]
        source, there = np.zeros(cells, np.int32), np.zeros(cells, np.bool_)
        source[places], there[places] = np.arange(len(order)), True
        # In one order for all that are tied, so that they get the same number to the last bit.
        known = {i: sorted({self.places[tie] for tie in (i, *parameters[i].ties) if tie in self.places}) for i in order}
        tied = np.full((cells, max(map(len, known.values()))), nobody)
        for index, place in self.places.items():
            tied[place, : len(known[index])] = known[index]
        self._source, self._there = to_device(source, self.device), to_device(there, self.device).view(self.shape)
        self._ties = to_device(tied.astype(np.int32), self.device).view(*self.shape, -1)
        self._places = {
            id(bucket): to_device(np.array([self.places[index] for index in bucket.indices], np.int32), self.device)
            for bucket in self.buckets
        }
        self._answers: Tensor | None = None

    def serves(self, bucket: Bucket) -> bool:
        return any(technique.pooler() == self.technique for technique in bucket.chain)

    def table(self) -> Pool:
        key = self.technique.name, self.technique.pools
        kept = [bucket.slabs[key].read(slice(None), torch.float64).flatten(1) for bucket in self.buckets]
        values = torch.cat([each.to(self.device) for each in kept])[self._source]
        return Pool(values.view(*self.shape, -1), self._there, self._ties)

    def publish(self) -> None:
        """Reads the state as it is before the step."""
        self._answers = self.technique.pool(self.table()).flatten()

    def others(self, bucket: Bucket, rows: Rows) -> Tensor:
        """float64 [k, 1, 1] for these rows."""
        assert self._answers is not None
        places = self._places[id(bucket)][rows if isinstance(rows, slice) else rows.to(self.device)]
        return self._answers[places].view(-1, 1, 1).to(bucket.key.device)

    def forget(self) -> None:
        self._answers = None

    def nbytes(self) -> int:
        tables = (self._source, self._there, self._ties, *self._places.values())
        return sum(table.untyped_storage().nbytes() for table in tables)
