"""Parameters that lose rows or columns while they are trained, and their optimizer's state with them.

The parameter objects stay, so param groups, gradient clipping, accelerate and whoever else holds them go on. With
`optimizer.state` they follow for our optimizers, torch's, bitsandbytes', and others that keep what `KINDS` names.
"""

import dataclasses as dc
import logging
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core.bucket import matrix_shape
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.state.codec import dequantized, quantized
from hina_kohya.core.state.slab import Slab, decoded, saved_parts
from hina_kohya.core.technique import Slot

logger = logging.getLogger("hina_kohya")


class Kind(Enum):
    """What a piece of state goes along with: values of the parameter, gradients, or means of squared gradients."""

    VALUE = 1
    GRADIENT = 2
    SQUARE = 3


KINDS = {
    **dict.fromkeys(("exp_avg", "momentum_buffer", "grad_avg", "exp_avg_slow", "state1", "s"), Kind.GRADIENT),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "state2"), Kind.SQUARE),
    **dict.fromkeys(("p0", "z"), Kind.VALUE),
}
# Means over one of the last two dimensions, which is not there: Adafactor's and CAME's.
_MEANS_OVER = {
    f"{name}_{side}": dim for name in ("exp_avg_sq", "exp_avg_res") for side, dim in (("row", -1), ("col", -2))
}
_SLOTS = {
    Slot.SIGNED: Kind.GRADIENT,
    Slot.SUM: Kind.GRADIENT,
    Slot.UNSIGNED: Kind.SQUARE,
    Slot.ANCHOR: Kind.VALUE,
}


@dc.dataclass(frozen=True, eq=False)
class Change:
    """The new rows (dim 0) or columns (dim 1) of a parameter as sums of the old ones.

    values   : [new, old] float64, what the new ones are made of
    gradients: [new, old] float64, the same for the gradient: with V' = A V and V = B V' + rest, it is B transposed
    """

    dim: int
    values: Tensor
    gradients: Tensor

    @classmethod
    def keep(cls, dim: int, index: Tensor, size: int) -> "Change":
        """Of ``size`` rows or columns these, in this order."""
        rows = torch.eye(size, dtype=torch.float64)[index.cpu()]
        return cls(dim, rows, rows)

    def of(self, tensor: Tensor, kind: Kind, dim: int | None = None) -> Tensor:
        """The changed tensor, contiguous, in the dtype and on the device it was."""
        dim = self.dim if dim is None else dim
        matrix = self.values if kind is Kind.VALUE else self.gradients
        if kind is Kind.SQUARE:
            matrix = matrix.square()  # of a sum of entries that are not correlated
        ahead = tensor.detach().double().movedim(dim, 0)
        changed = (matrix.to(tensor.device) @ ahead.reshape(len(ahead), -1)).view(-1, *ahead.shape[1:])
        return changed.movedim(0, dim).to(tensor.dtype).contiguous()


Changes = Mapping[Tensor, Change]


@torch.no_grad()
def reshape(optimizers: Iterable[torch.optim.Optimizer], changes: Changes) -> None:
    """Changes the parameters in place, drops their gradients, and lets the state of every optimizer follow.

    Between two steps, outside of autograd. What an optimizer keeps that cannot follow starts anew, with one line in
    the log; its step count stays where the average that it corrects stays.
    """
    optimizers = list(optimizers)
    for optimizer in optimizers:
        if isinstance(optimizer, HinaOptimizer):
            _reshape_ours(optimizer, changes)
        else:
            _reshape_state(optimizer, changes)
    for param, change in changes.items():
        param.grad = None
        values = change.of(param, Kind.VALUE)
        # A gradient accumulator that somebody holds (DDP) is of the old shape; another dtype makes autograd forget it.
        param.data = torch.empty(0, dtype=_other(param.dtype), device=param.device)
        param.data = values
    for optimizer in optimizers:
        if isinstance(optimizer, HinaOptimizer):
            optimizer.replan()


def _other(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype != torch.float32 else torch.bfloat16


def _reshape_ours(optimizer: HinaOptimizer, changes: Changes) -> None:
    """State as fp32 values, which the next plan takes over into whatever its codec keeps."""
    restarted: set[str] = set()
    for bucket in optimizer.plan().buckets:
        techniques = {technique.name: technique for technique in bucket.chain}
        for param in bucket.params:
            if (change := changes.get(param)) is None:
                continue
            state, old = optimizer.state[param], matrix_shape(param.shape)
            new = (len(change.values), old[1]) if change.dim == 0 else (old[0], len(change.values))
            entry: dict[str, Any] = {"step": state["step"].clone()}
            lost = {name for name, technique in techniques.items() if technique.partner_shaped}
            for (name, slot), slab in bucket.slabs.items():
                if name in lost:
                    continue
                before, after = (techniques[name].slot_shape(slot, *shape, None) for shape in (old, new))
                kind = _SLOTS.get(slab.slot)
                if before == old and kind is not None:
                    entry[slab.key] = change.of(_values(state, slab, old, param.device), kind)
                elif before == after:
                    entry |= {key: state[key].clone() for key in (slab.key, f"{slab.key}.scale") if key in state}
                else:
                    lost.add(name)
            state.clear()
            state.update({key: value for key, value in entry.items() if key.partition(".")[0] not in lost})
            restarted |= lost & {name for name, _ in bucket.slabs}
    _say(optimizer, restarted)


def _values(state: Mapping[str, Any], slab: Slab, shape: tuple[int, int], device: torch.device) -> Tensor:
    return decoded(saved_parts(state, slab.key), *shape, slab.slot, device).float()


def _reshape_state(optimizer: torch.optim.Optimizer, changes: Changes) -> None:
    restarted: set[str] = set()
    for param, change in changes.items():
        state = optimizer.state.get(param)
        if not state:
            continue
        unknown = {key for key, value in state.items() if not _follow(state, key, value, param, change)}
        if unknown:
            del optimizer.state[param]
        restarted |= unknown
    _say(optimizer, restarted)


def _follow(state: dict[str, Any], key: str, value: Any, param: Tensor, change: Change) -> bool:
    """Whether one piece of state could be changed, or need not be."""
    if not isinstance(value, Tensor) or value.numel() <= 1 or key.startswith(("absmax", "qmap", "unorm_vec")):
        return True  # numbers, and what belongs to another piece
    kind = KINDS.get(key)
    if kind is not None and value.shape == param.shape:
        if value.dtype == torch.uint8:
            place = key.removeprefix("state")
            blocks = state[f"absmax{place}"], state[f"qmap{place}"]
            values = change.of(dequantized(value, *blocks), kind)
            state[key], state[f"absmax{place}"] = quantized(values, blocks[1])
        else:
            state[key] = change.of(value, kind)
        return True
    if key in _MEANS_OVER:
        dims = [dim for dim in range(param.dim()) if dim != param.dim() + _MEANS_OVER[key]]
        if change.dim in dims:
            state[key] = change.of(value, Kind.SQUARE, dims.index(change.dim))
        return True
    return False


def _say(optimizer: torch.optim.Optimizer, restarted: set[str]) -> None:
    if restarted:
        logger.warning(
            "%s: of the parameters that changed their shape, %s cannot follow and starts anew",
            type(optimizer).__name__, ", ".join(sorted(restarted)),
        )  # fmt: skip
