"""Learning rates and weight decays of a step: from the param groups to numbers per matrix, on its device."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.bucket import Bucket, to_device
from hina_kohya.core.hyper import Interval, check_value
from hina_kohya.core.state.slab import Rows

POSITIVE = Interval("[0, inf)")


class RowRates(NamedTuple):
    """Of the rows of one bucket, in float64: learning rate and weight decay [2, N, 1, 1], and the peak [N, 1, 1].

    The peak is what the scheduler multiplies, `initial_lr`, or lr where that is larger or there is none. It is there
    where the bucket's chain reads it.
    """

    both: Tensor
    peak: Tensor | None

    def of(self, rows: Rows) -> "RowRates":
        return RowRates(self.both[:, rows], None if self.peak is None else self.peak[rows])


class Rates:
    """One transfer a device and step, whatever the number of buckets."""

    def __init__(self, buckets: Sequence[Bucket]):
        self.buckets = buckets

    def of(self, param_groups: Sequence[Mapping[str, Any]]) -> list[RowRates]:
        """For each bucket, those of its rows.

        Raises ValueError for a rate that is negative or not a number. One on a GPU is neither read nor checked.
        """
        tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        starts: dict[torch.device, int] = {}
        numbers = np.array([_numbers(k, group) for k, group in enumerate(param_groups)]).T.reshape(3, -1)
        result = []
        for bucket in self.buckets:
            device = bucket.key.device
            if device not in tables:
                tables[device], starts[device] = self._table(device, numbers, param_groups), 0
            start = starts[device]
            starts[device] = start + len(bucket)
            end, table = start + len(bucket), tables[device]
            peak = table[1][start:end].view(-1, 1, 1) if bucket.products else None
            result.append(RowRates(table[0][:, start:end].view(2, -1, 1, 1), peak))
        return result

    def _table(
        self, device: torch.device, numbers: np.ndarray, param_groups: Sequence[Mapping[str, Any]]
    ) -> tuple[Tensor, Tensor]:
        own = [bucket for bucket in self.buckets if bucket.key.device == device]
        groups = np.concatenate([bucket.groups for bucket in own])
        rows = numbers[:, groups]
        shares = [math.prod(technique.decay_share for technique in bucket.chain) for bucket in own]
        rows[1] *= np.concatenate([bucket.decays * share for bucket, share in zip(own, shares, strict=True)])
        flat = to_device(rows.ravel(), device)
        both, peak = flat[: 2 * rows.shape[1]].view(2, -1), flat[2 * rows.shape[1] :]
        rates = [group["lr"] for group in param_groups]
        if any(map(_unread, rates)):
            exact = {"dtype": torch.float64, "device": device}
            both[0] = torch.stack([torch.as_tensor(rate, **exact) for rate in rates])[to_device(groups, device)]
            torch.maximum(peak, both[0], out=peak)
        return both, peak


def _numbers(number: int, group: Mapping[str, Any]) -> tuple[float, float, float]:
    lr = 0.0 if _unread(group["lr"]) else float(group["lr"])
    decay = float(group["weight_decay"])
    check_value(f"param group {number}: lr", lr, 1e-3, POSITIVE)
    check_value(f"param group {number}: weight_decay", decay, 1e-2, POSITIVE)
    initial = group.get("initial_lr", 0.0)
    return lr, decay, max(lr, 0.0 if _unread(initial) else float(initial))


def _unread(rate: Any) -> bool:
    """Reading it would wait for the device."""
    return isinstance(rate, Tensor) and rate.device.type != "cpu"
