"""Learning rates and weight decays of a step: from the param groups to a number a matrix, on its device."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hina_kohya.core.bucket import Bucket, to_device
from hina_kohya.core.hyper import Interval, check_value

POSITIVE = Interval("[0, inf)")


class Rates:
    """One transfer a device and step, whatever the number of buckets."""

    def __init__(self, buckets: Sequence[Bucket], groups: np.ndarray):
        self.buckets, self.groups = buckets, groups

    def of(self, param_groups: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """For each bucket, float64 [2, N, 1, 1]: learning rate and weight decay of its rows.

        Raises ValueError for a rate that is negative or not a number. One on a GPU is neither read nor checked.
        """
        tables: dict[torch.device, Tensor] = {}
        starts: dict[torch.device, int] = {}
        numbers = np.array([_numbers(k, group) for k, group in enumerate(param_groups)]).T.reshape(2, -1)
        result = []
        for bucket in self.buckets:
            device = bucket.key.device
            if device not in tables:
                tables[device], starts[device] = self._table(device, numbers, param_groups), 0
            start = starts[device]
            starts[device] = start + len(bucket)
            result.append(tables[device][:, start : start + len(bucket)].view(2, -1, 1, 1))
        return result

    def _table(self, device: torch.device, numbers: np.ndarray, param_groups: Sequence[Mapping[str, Any]]) -> Tensor:
        own = [bucket for bucket in self.buckets if bucket.key.device == device]
        groups = np.concatenate([self.groups[bucket.indices] for bucket in own])
        rows = numbers[:, groups]
        rows[1] *= np.concatenate([bucket.decays for bucket in own])
        table = to_device(rows, device)
        rates = [group["lr"] for group in param_groups]
        if any(map(_unread, rates)):
            exact = {"dtype": torch.float64, "device": device}
            table[0] = torch.stack([torch.as_tensor(rate, **exact) for rate in rates])[to_device(groups, device)]
        return table


def _numbers(number: int, group: Mapping[str, Any]) -> tuple[float, float]:
    lr = 0.0 if _unread(group["lr"]) else float(group["lr"])
    decay = float(group["weight_decay"])
    check_value(f"param group {number}: lr", lr, 1e-3, POSITIVE)
    check_value(f"param group {number}: weight_decay", decay, 1e-2, POSITIVE)
    return lr, decay


def _unread(rate: Any) -> bool:
    """Reading it would wait for the device."""
    return isinstance(rate, Tensor) and rate.device.type != "cpu"
