"""The optimizer a training would get: the class sd-scripts would find, its decay, and the bytes that it keeps.

No table of sizes: our optimizers report theirs on weightless parameters, any other takes real steps on one parameter of
each shape, so that its options and its installed version count.
"""

import dataclasses as dc
import importlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.parameters import roles
from hina_kohya.text import did_you_mean
from hina_kohya.trainers import optimizer_args, optimizer_names, optimizers
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

Pairs = list[tuple[str | None, Tensor]]


@dc.dataclass(frozen=True)
class Chosen:
    """An optimizer class with the arguments sd-scripts would give it.

    lr     : None where the optimizer sets it itself; sd-scripts then takes it from the groups, too
    missing: why there is no class
    """

    cls: Any
    words: list[str]
    lr: Any
    missing: str = ""

    @property
    def ours(self) -> bool:
        return isinstance(self.cls, type) and issubclass(self.cls, HinaOptimizer)

    @property
    def sets_lr(self) -> bool:
        return self.lr is None

    @property
    def name(self) -> str:
        return getattr(self.cls, "__name__", "")

    def build(self, groups: Sequence[Mapping[str, Any]]) -> Any:
        """The optimizer on these groups, left unchanged. Raises UserError for arguments it refuses."""
        dropped = {"lr"} if self.sets_lr else set()
        kept = [{key: value for key, value in group.items() if key not in dropped} for group in groups]
        return optimizers.build(self.cls, self.words, kept, self.lr)[2]


def choose(optimizer_type: str, words: Sequence[str], lr: float | None, hooked: bool) -> Chosen:
    """Raises UserError for a name that nobody knows."""
    options = optimizer_args.parse(words)
    if hooked and (cls := optimizer_names.resolve(optimizer_type, SD_SCRIPTS)) is not None:
        return Chosen(cls, list(words), lr)
    making = SD_SCRIPTS.optimizers.making(optimizer_type, options, lr)
    if making.refusal:
        raise UserError(f"optimizer_type {optimizer_type}: {making.refusal}")
    path, options, lr = making.path, making.arguments, making.lr
    module, _, name = path.rpartition(".")
    words = [f"{key}={value!r}" for key, value in options.items()]
    try:
        return Chosen(getattr(importlib.import_module(module), name), words, lr)
    except ImportError as error:
        return Chosen(None, words, lr, f"optimizer_type {optimizer_type} needs a package that is not here ({error})")
    except AttributeError as error:
        raise UserError(_unknown(optimizer_type, module)) from error


def _unknown(optimizer_type: str, module: str) -> str:
    entry = optimizer_names.find(optimizer_type) if "." not in optimizer_type else None
    if entry is not None:
        return (
            f"without hina_kohya's hooks sd-scripts does not know {optimizer_type}; write "
            f"{optimizer_names.path(entry)}, or use network_module hina_kohya.lycoris"
        )
    names = [*SD_SCRIPTS.optimizers.names] if "." not in optimizer_type else vars(importlib.import_module(module))
    return f"there is no optimizer {optimizer_type!r}; {did_you_mean(optimizer_type.rpartition('.')[2], names)}"


def samples(groups: Sequence[Mapping[str, Any]], pairs: Sequence[Pairs]) -> list[dict[str, Any]]:
    """The same groups, each with a real tensor in the place of its smallest parameter."""
    return [
        {**group, "params": [_real(*min(named, key=lambda pair: pair[1].numel()), zero=False)]}
        for group, named in zip(groups, pairs, strict=True)
    ]


@dc.dataclass(frozen=True)
class _Kind:
    """What a parameter's state depends on: its group and shape, the marks that optimizers read from it, its values."""

    group: int
    shape: tuple[int, ...]
    marks: tuple[tuple[str, bool], ...]
    zero: bool  # Prodigy keeps no copy of one that starts at zero


def measured(chosen: Chosen, groups: Sequence[Mapping[str, Any]], pairs: Sequence[Pairs]) -> tuple[int, list[str]]:
    """Bytes of state after two steps, and what there is to say of them."""
    kinds: Counter[_Kind] = Counter()
    first: dict[_Kind, tuple[str | None, Tensor]] = {}
    for number, named in enumerate(pairs):
        for name, param in named:
            zero = roles.identify(name or "", tuple(param.shape))[1].zero_init
            kind = _Kind(number, tuple(param.shape), tuple(_marks(param).items()), zero)
            kinds[kind] += 1
            first.setdefault(kind, (name, param))
    total, shared, unpacked = 0, 0, 0
    for kind, count in kinds.items():
        optimizer = chosen.build([{**groups[kind.group], "params": [_real(*first[kind], kind.zero)]}])
        if hasattr(
            optimizer, "get_state_buffer"
        ):  # bitsandbytes: its steps need a GPU in older releases, this does not
            optimizer.is_paged = False
            group = optimizer.param_groups[0]
            optimizer.init_state(group, group["params"][0], 0, 0)
            tables = {each.untyped_storage().data_ptr() for each in optimizer.name2qmap.values()}
            packed = any(each.dtype == torch.uint8 for each in _tensors(optimizer.state))
            unpacked += count * (optimizer.args.optim_bits == 8 and not packed)
            shared = max(shared, stored_bytes(optimizer.state, tables))
            total += count * (stored_bytes(optimizer.state) - stored_bytes(optimizer.state, tables))
        else:
            _step(optimizer)
            total += count * stored_bytes(optimizer.state)
    tensors = sum(kinds.values())
    small = f"{chosen.name} keeps {unpacked:,} of {tensors:,} tensors in 32 bits: they have fewer than 4096 elements"
    return total + shared, [small] if unpacked else []


def _marks(param: Tensor) -> dict[str, bool]:
    return {name: value for name, value in sorted(vars(param).items()) if isinstance(value, bool)}


def _real(name: str | None, param: Tensor, zero: bool) -> Any:
    values = torch.zeros(param.shape, dtype=param.dtype)
    real = torch.nn.Parameter(values if zero else values.fill_(0.01))
    vars(real).update(_marks(param))
    return real if name is None else (name, real)


def _step(optimizer: Any) -> None:
    for _ in range(2):
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.full_like(param, 1e-3)
        optimizer.step()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for each in inner for tensor in _tensors(each)]


def stored_bytes(state: Any, only: Container[int] | None = None) -> int:
    """Storage behind the tensors of a state, each counted once."""
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in _tensors(state)}
    return sum(size for at, size in storages.items() if only is None or at in only)
