"""Values that a shipped configuration leaves to its user: `<folder of images>`."""

import re
from collections.abc import Mapping
from typing import Any

_MARK = re.compile(r"<[^<>]+>")


def is_one(value: Any) -> bool:
    return isinstance(value, str) and _MARK.search(value) is not None


def to_fill_in(values: Mapping[str, Any]) -> list[str]:
    """The keys that still hold one."""
    return [
        key for key, value in values.items() if is_one(value) or (isinstance(value, list) and any(map(is_one, value)))
    ]
