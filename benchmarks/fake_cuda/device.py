"""A CUDA device that only pretends: torch's fake tensors, and stand-ins for what they do not know."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
CPU = torch.device("cpu")


class HostValues(TorchDispatchMode):
    """Gives ``value`` to whoever reads a value on the host, so that a step goes on behind a wait; knows pinned memory.

    Enter it inside the fake mode and outside of what counts.
    """

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return _numpy(args[0]).type(self.value).item()
        if name == "equal":
            return False
        if name == "_pin_memory":
            return torch.empty_like(args[0])
        if not torch.backends.cuda.is_built():
            if name in ("copy_", "index_put_"):
                return args[0]
            if name == "index":
                return torch.empty(_shape_of_index(*args), dtype=args[0].dtype, device=args[0].device)
        return func(*args, **(kwargs or {}))


class _WithoutCuda(TorchFunctionMode):
    """Lets torch's CPU build pretend too: some of its bindings look for the device before the fake mode is asked.

    Below autograd, where nothing looks. Views keep no tie to what they are of, which fake tensors do not need.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, aten = getattr(func, "__name__", ""), torch.ops.aten
        with torch._C._AutoDispatchBelowAutograd():
            if name == "copy_":
                return aten.copy_.default(*args, **(kwargs or {}))
            if name == "contiguous":
                return args[0] if args[0].is_contiguous() else aten.clone.default(args[0])
            if name == "__getitem__":
                return self._get(*args)
            if name == "__setitem__":
                x, index, value = args
                value = value if isinstance(value, Tensor) else torch.tensor(value)
                tensors = _tensor_indices(index)
                if tensors:
                    return aten.index_put_.default(x, tensors, value)
                return aten.copy_.default(self._get(x, index), value)
        return func(*args, **(kwargs or {}))

    def _get(self, x: Tensor, index: Any) -> Tensor:
        if tensors := _tensor_indices(index):
            return torch.ops.aten.index.Tensor(x, tensors)
        dim = 0
        for part in index if isinstance(index, tuple) else (index,):
            if isinstance(part, int):
                x = x.select(dim, part)
            elif part is None:
                x, dim = x.unsqueeze(dim), dim + 1
            elif part is Ellipsis:
                dim = x.dim() - (len(index) - 1 - index.index(Ellipsis))
            else:
                x, dim = torch.ops.aten.slice.Tensor(x, dim, part.start, part.stop, part.step or 1), dim + 1
        return x


def _tensor_indices(index: Any) -> list[Tensor | None]:
    """What `aten.index` takes; empty where there is no tensor."""
    index = [torch.tensor(index)] if isinstance(index, list) else list(index) if isinstance(index, tuple) else [index]
    if not any(isinstance(part, Tensor) for part in index):
        return []
    assert all(isinstance(part, Tensor) or part == slice(None) for part in index)
    return [part if isinstance(part, Tensor) else None for part in index]


def _shape_of_index(x: Tensor, indices: list[Tensor | None]) -> torch.Size:
    return torch.ops.aten.index.Tensor(_meta(x), [None if i is None else _meta(i) for i in indices]).shape


def _meta(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


@cache
def _mode() -> FakeTensorMode:
    # One for the process: what the package keeps for a device, such as code tables, belongs to one mode for good.
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def pretended(value: float = 1.0) -> Iterator[None]:
    """Within it, tensors are fake, "cuda" is a device, and ``value`` is what the host reads.

    `tolist` and `numpy`, which fake tensors refuse or read one value at a time, copy to the host once, as they do.
    """

    def numpy(x: Tensor) -> np.ndarray:
        if x.device.type != "cpu":
            raise TypeError(f"can't convert {x.device} device type tensor to numpy")  # torch's own words
        return np.full(x.shape, value, dtype=_numpy(x))

    def tolist(x: Tensor):
        return np.full(x.cpu().shape, value, dtype=_numpy(x)).tolist()

    with (
        nullcontext() if torch.backends.cuda.is_built() else _WithoutCuda(),
        _mode(),
        HostValues(value),
        mock.patch.object(FakeTensor, "numpy", numpy, create=True),
        mock.patch.object(FakeTensor, "tolist", tolist, create=True),
        mock.patch("torch.cuda.synchronize"),
    ):
        yield


def _numpy(x: Tensor) -> np.dtype:
    return np.dtype(str(x.dtype).removeprefix("torch.").replace("bfloat16", "float32"))


def move(param: Tensor, device: torch.device) -> None:
    """What `Module.to` does to a parameter: the same object, elsewhere. ``param.data = ...`` moves no fake tensor."""
    assert isinstance(param, FakeTensor)
    param.fake_device = device
    if param.grad is not None:
        move(param.grad, device)
