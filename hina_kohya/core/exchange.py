"""What techniques see of other matrices than their own: read once before the step, handed to the rows that asked."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from hina_kohya.core.bucket import Bucket
from hina_kohya.core.coupling import Coupling
from hina_kohya.core.parameter import Parameter
from hina_kohya.core.pooling import Pooling
from hina_kohya.core.state.slab import Rows
from hina_kohya.core.technique import Technique


class Exchange(Protocol):
    """One technique's: `Coupling` with the partners of each matrix, `Pooling` with all matrices."""

    technique: Technique

    def serves(self, bucket: Bucket) -> bool: ...

    def publish(self) -> None:
        """Reads parameters and state as they are before the step."""
        ...

    def others(self, bucket: Bucket, rows: Rows) -> Tensor:
        """[k, ...] what becomes `Signal.others` of these rows."""
        ...

    def forget(self) -> None: ...

    def nbytes(self) -> int: ...


def exchanges(buckets: Sequence[Bucket], parameters: Sequence[Parameter]) -> list[Exchange]:
    """Those that the chains of these buckets ask for."""
    coupled = {(t, bucket.key.device) for bucket in buckets for t in bucket.chain if t.couples}
    pooled = {technique.pooler() for bucket in buckets for technique in bucket.chain if technique.pools}
    return [
        *(Coupling(technique, device, buckets, parameters) for technique, device in coupled),
        *(Pooling(technique, buckets, parameters) for technique in pooled),
    ]
