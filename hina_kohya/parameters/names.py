"""Names of parameters from whatever a caller gave: no edit of sd-scripts or LyCORIS is needed.

sd-scripts passes ``dict.values()``; Python >= 3.10 lets one read the dict behind it (``.mapping``), whose keys are the
names that end up in the saved file. It has to be read before torch turns the view into a list.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def named(params: Any, names: Any = None) -> tuple[list[Tensor], list[str] | None]:
    """Parameters as a list, and their names where there are any.

    Sources, first that applies: ``(name, tensor)`` tuples, ``names`` (one for each parameter), the mapping behind
    ``dict.values()``. Raises ValueError where ``names`` does not fit or tuples and tensors are mixed.
    """
    if isinstance(params, Tensor):
        params = [params]
    if isinstance(params, set):
        raise TypeError("optimizer parameters must be in an order that is the same in every run; use a list, not a set")
    mapping = getattr(params, "mapping", None)
    items = list(params)
    pairs = [isinstance(item, tuple) for item in items]
    if any(pairs):
        if not all(pairs):
            raise ValueError(
                f"{pairs.count(False)} of {len(items)} parameters have no name; name all of a group or none"
            )
        return [tensor for _, tensor in items], [str(name) for name, _ in items]
    if names is not None:
        names = [str(name) for name in names]
        if len(names) != len(items):
            raise ValueError(f"{len(names)} names were given for {len(items)} parameters")
        return items, names
    if isinstance(mapping, Mapping) and _same(mapping.values(), items):
        return items, [str(name) for name in mapping]
    return items, None


def _same(left: Iterable[Any], right: list[Any]) -> bool:
    return all(a is b for a, b in zip(left, right, strict=True))
