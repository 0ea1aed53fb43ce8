"""Coupled parameters: what the partners of a matrix published at the start of the step."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.bucket import Bucket, to_device
from hina_kohya.core.parameter import Parameter
from hina_kohya.core.state.slab import Rows
from hina_kohya.core.technique import Technique


class Coupling:
    """The tables of one technique on one device: for each published shape, all publishing matrices and a row of ones.

    The row of ones stands in for partners that a matrix does not have when others of its bucket do.
    """

    def __init__(
        self, technique: Technique, device: torch.device, buckets: Sequence[Bucket], parameters: Sequence[Parameter]
    ):
        self.technique, self.device = technique, device
        partners = {
            index: technique.partners(parameters[index].member)
            for bucket in buckets
            if self.serves(bucket)
            for index in bucket.indices
        }
        wanted = {partner for each in partners.values() for partner in each}
        self.sources: list[tuple[Bucket, list[int]]] = []
        self.places: dict[int, tuple[torch.Size, int]] = {}
        sizes: dict[torch.Size, int] = defaultdict(int)
        for bucket in buckets:
            rows = [row for row, index in enumerate(bucket.indices) if index in wanted]
            if not rows:
                continue
            shape = self._published(bucket.m, bucket.n)
            for row in rows:
                self.places[bucket.indices[row]] = shape, sizes[shape]
                sizes[shape] += 1
            self.sources.append((bucket, rows))
        self.indices = {
            id(bucket): self._index([partners[index] for index in bucket.indices], sizes)
            for bucket in buckets
            if self.serves(bucket)
        }
        self.tables: dict[torch.Size, Tensor] = {}

    def serves(self, bucket: Bucket) -> bool:
        return self.technique in bucket.chain and bucket.key.device == self.device

    def _published(self, m: int, n: int) -> torch.Size:
        published = self.technique.publish(torch.empty(1, m, n, device="meta"))
        assert published is not None, f"{self.technique.name} couples parameters but publishes nothing"
        return published.shape[1:]

    def _index(self, partners: Sequence[Sequence[int]], sizes: dict[torch.Size, int]):
        shape = self.places[partners[0][0]][0]
        width, ones = max(map(len, partners)), sizes[shape]
        rows = [[self.places[p][1] for p in row] + [ones] * (width - len(row)) for row in partners]
        return shape, to_device(np.array(rows, dtype=np.int32), self.device)

    def publish(self) -> None:
        """Reads the parameters as they are before the step."""
        parts: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for bucket, rows in self.sources:
            for picked, _ in bucket.chunks(rows):
                published = self.technique.publish(bucket.gather([bucket.params[row] for row in picked]))
                assert published is not None
                parts[published.shape[1:]].append(published.to(self.device))
        self.tables = {shape: torch.cat([*part, torch.ones_like(part[0][:1])]) for shape, part in parts.items()}

    def others(self, bucket: Bucket, rows: Rows) -> Tensor:
        """[k, K, ...] what the partners of these rows published."""
        shape, index = self.indices[id(bucket)]
        return self.tables[shape][index[rows]]

    def forget(self) -> None:
        self.tables = {}

    def nbytes(self) -> int:
        return sum(index.untyped_storage().nbytes() for _, index in self.indices.values())
