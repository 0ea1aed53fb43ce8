"""Fewer cases than all triples: few faults need three particular values at once, many need two."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest


def same(values: Iterable[Any]) -> dict[str, Any]:
    """An axis whose values are their own ids."""
    return {str(value): value for value in values}


def in_pairs(
    names: tuple[str, str, str], first: Mapping[str, Any], second: Mapping[str, Any], third: Mapping[str, Any]
):
    """A mark for cases in which every value of an axis meets every value of each other axis. axes: id -> value.

    The second axis has at least as many values as the third, and the first as the second.
    """
    assert len(first) >= len(second) >= len(third)
    thirds = list(third.items())
    cases = []
    for i, (a, one) in enumerate(first.items()):
        for j, (b, other) in enumerate(second.items()):
            c, last = thirds[(i + j) % len(thirds)]
            cases.append(pytest.param(one, other, last, id=f"{a}-{b}-{c}"))
    return pytest.mark.parametrize(names, cases)
