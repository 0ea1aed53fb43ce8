"""Tensors without memory: a network of any size is made in seconds, by its own code.

torch's meta device alone is not enough: LyCORIS reads sizes back with `.item()` and copies weights with `.cpu()`. So a
tensor made of given values (`torch.tensor`) is real, one that is only filled is on meta, and nothing leaves meta.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

META = torch.device("meta")


class Weightless(TorchDispatchMode):
    """While it is on, new weights have a shape and a dtype, and no values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        on_meta = [tensor.is_meta for tensor in _tensors((*args, *kwargs.values()))]
        if on_meta and not any(on_meta):
            return func(*args, **kwargs)
        if "device" in kwargs:
            kwargs["device"] = META
        if not all(on_meta):
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(META), (args, kwargs))
        return func(*args, **kwargs)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
