"""What a step costs, seen below autograd: operations, launches, bytes, copies, and all that makes the host wait.

It works on real tensors and on fake ones. On a CPU, waits are counted as if the tensors were on a GPU.
"""

import dataclasses as dc
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
_HERE = str(Path(__file__).parent)  # what measures is no part of what is measured

# Why the host has to wait for these.
_READS = dict.fromkeys(["_local_scalar_dense", "equal", "is_nonzero"], "reads a value on the host")
_SIZED = dict.fromkeys(
    ["nonzero", "masked_select", "_unique", "_unique2", "unique_consecutive", "unique_dim", "repeat_interleave",
     "bincount", "histc"],
    "has a result whose size depends on values",
)  # fmt: skip
_CHECKED = dict.fromkeys(
    ["_linalg_eigh", "_linalg_svd", "_linalg_check_errors", "linalg_pinv", "linalg_lstsq", "linalg_eig"],
    "is checked on the host",
)
WAITS = {**_READS, **_SIZED, **_CHECKED}

_COPIES = {"_to_copy", "copy_", "_foreach_copy_"}
_WRITES_ONLY = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_", "normal_", "uniform_", "bernoulli_"}
_FREE = {  # no kernel: memory is taken, or only the header of a tensor changes
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view",
    "_reshape_alias", "is_pinned", "_pin_memory", "set_", "resize_", "detach_",
}  # fmt: skip
# Gradients, which the schema says are written.
_ONLY_TO_UNSCALE = {**dict.fromkeys(["_fused_adamw_", "_fused_adam_"], "grads"), "optimizer_update_8bit_blockwise": "g"}
_KERNELS = {"constant_pad_nd": 2, "eye": 2}  # fill and copy; fill and diagonal

# Of torch's multi_tensor_apply and cat: tensors that fit the arguments of one launch, by the number of lists.
_LISTS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
_CHUNK, _BLOCKS, _CAT = 1 << 16, 320, 128


@dc.dataclass(frozen=True)
class Fault:
    """Something that a step should not do.

    kind: "wait", the host waits for the device; "stray", an operation ran on the host; "mix-up", devices do not fit
    """

    kind: str
    operation: str
    why: str
    frames: tuple[str, ...]  # "file:line function", innermost first, without torch's

    def __str__(self) -> str:
        own = next((frame for frame in self.frames if frame.startswith("hina_kohya")), "")
        return f"{self.operation} {self.why}, at {own or next(iter(self.frames), 'an unknown place')}"


class Recorder(TorchDispatchMode):
    """Counts while it is entered; `faults` are in the order in which they happened.

    operations : what computes, by name, on any device; views are counted apart
    launches   : kernels on the device, by torch's own rules for lists of tensors; a decomposition counts as one
    nbytes     : what these kernels read and write if nothing stays in a cache
    to_device, to_host : copies between host and device
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.operations: Counter[str] = Counter()
        self.views = self.launches = self.nbytes = self.to_device = self.to_host = 0
        self.faults: list[Fault] = []
        self.explained = False  # an exception came from the operation of the last fault

    def __enter__(self):
        self._synchronize = torch.cuda.synchronize

        def synchronize(*args: Any, **kwargs: Any) -> None:
            self._note("wait", "torch.cuda.synchronize", "waits for all of the device's work")
            self._synchronize(*args, **kwargs)

        torch.cuda.synchronize = synchronize
        return super().__enter__()

    def __exit__(self, *exception: Any):
        torch.cuda.synchronize = self._synchronize
        return super().__exit__(*exception)

    @property
    def waits(self) -> int:
        return sum(fault.kind == "wait" for fault in self.faults)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace in ("prim", "profiler"):
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        try:
            result = func(*args, **kwargs)
        except RuntimeError as error:
            if "same device" in str(error) or "Device Propagation" in str(error):
                self._note("mix-up", name, "gets tensors of two devices")
                self.explained = True
            elif why := self._why_it_waits(name, args, kwargs, list(_tensors((args, kwargs))), []):
                self._note("wait", name, why)
                self.explained = True
            raise
        if _is_view(func):
            self.views += 1
            return result
        self.operations[name] += 1
        ins, outs = list(_tensors((args, kwargs))), list(_tensors(result))
        if why := self._why_it_waits(name, args, kwargs, ins, outs):
            self._note("wait", name, why)
        elif outs and all(map(self._on_host, outs)) and name not in _FREE and name not in _COPIES:
            self._note("stray", name, "runs on the host")
        if any(not self._on_host(x) for x in (*ins, *outs)):
            self.launches += _launches(name, args, ins)
            self.nbytes += _nbytes(func, name, args, kwargs, outs)
        return result

    def _on_host(self, x: Tensor) -> bool:
        return self.device.type != "cpu" and x.device.type == "cpu"

    def _note(self, kind: str, name: str, why: str) -> None:
        self.faults.append(Fault(kind, name, why, tuple(_frames())))

    def _why_it_waits(self, name: str, args: Any, kwargs: Any, ins: list[Tensor], outs: list[Tensor]) -> str:
        touches = any(not self._on_host(x) for x in ins)
        if name in _COPIES:
            source, target = (ins[:1], outs) if name == "_to_copy" else (ins[len(ins) // 2 :], ins[: len(ins) // 2])
            from_host, to_host = any(map(self._on_host, source)), any(map(self._on_host, target))
            if from_host and not to_host:
                self.to_device += 1
                return "" if _non_blocking(name, args, kwargs) else "copies to the device and waits for it"
            if to_host and not from_host:
                self.to_host += 1
                return "copies to the host"
        if name in WAITS and touches:
            return WAITS[name]
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            indices = [i for i in args[1] if i is not None]
            fills = name != "index" and args[2].numel() == 1  # torch makes it a masked fill
            if any(i.dtype in (torch.bool, torch.uint8) for i in indices) and touches and not fills:
                return "indexes by a mask"
            if any(map(self._on_host, indices)) and not self._on_host(args[0]):
                return "indexes by what lies on the host"
        return ""


def _is_view(func: Any) -> bool:
    returns = [r.alias_info for r in func._schema.returns]
    return bool(returns) and all(alias is not None and not alias.is_write for alias in returns)


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, (list, tuple)):
        for each in x:
            yield from _tensors(each)
    elif isinstance(x, dict):
        yield from _tensors(list(x.values()))


def _non_blocking(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    return bool(kwargs.get("non_blocking", args[2] if name != "_to_copy" and len(args) > 2 else False))


def _launches(name: str, args: Sequence[Any], ins: Sequence[Tensor]) -> int:
    if name in _FREE:
        return 0
    if name in ("cat", "stack"):
        return math.ceil(len(ins) / _CAT)
    lists = [arg for arg in args if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor)]
    if lists and name.startswith(("_foreach", "_fused", "_amp_foreach")):
        # Step counters, lists of numbers on the host, are no arguments of the kernel.
        depth = sum(each[0].numel() > 1 or each[0].device == lists[0][0].device for each in lists)
        return _of_lists(lists[0], min(depth, 5)) + (name == "_foreach_norm")
    return _KERNELS.get(name, 1)


def _of_lists(tensors: Sequence[Tensor], depth: int) -> int:
    """Launches of multi_tensor_apply: one whenever the tensors or the blocks of an argument list are full."""
    launches = count = blocks = 0
    for tensor in tensors:
        count += 1
        chunks = math.ceil(tensor.numel() / _CHUNK)
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if (count == _LISTS[depth] and last) or blocks == _BLOCKS:
                launches, blocks, count = launches + 1, 0, 0 if last else 1
    return launches + (blocks > 0)


def _nbytes(func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any], outs: Sequence[Tensor]) -> int:
    """Read once and written once; what is expanded counts as often as it is stored."""
    if name in _FREE:
        return 0
    total = 0
    targets = set()
    for position, argument in enumerate(func._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if argument.name == _ONLY_TO_UNSCALE.get(name) and kwargs.get("grad_scale") is None:
            writes = False
        for x in _tensors(value):
            total += _stored(x) * (2 if writes and name not in _WRITES_ONLY else 1)
            targets |= {id(x)} if writes else set()
    return total + sum(_stored(x) for x in outs if id(x) not in targets)


def _stored(x: Tensor) -> int:
    sizes = (size for size, stride in zip(x.shape, x.stride(), strict=True) if stride)
    return x.element_size() * (math.prod(sizes) if x.numel() else 0)


def _frames() -> Iterator[str]:
    frame = sys._getframe(2)
    while frame is not None:
        path, function = frame.f_code.co_filename, frame.f_code.co_name
        frame, line = frame.f_back, frame.f_lineno
        if "/torch/" in path or path.startswith(("<", _HERE)):
            continue
        path = str(Path(path).relative_to(ROOT)) if path.startswith(str(ROOT)) else path.split("site-packages/")[-1]
        if path.startswith("benchmarks") or not path.endswith(".py"):
            continue
        yield f"{path}:{line} {function}"
