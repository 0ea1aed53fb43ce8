"""Checkpoints of older formats, brought up to the one that is written now.

0 (before 2026-12, without a format): 8-bit codes that are equally spaced after a square root for averages and after a
fourth root for squares; ``step`` as a plain number, which is still read.
"""

import dataclasses as dc
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hina_kohya.core import registry
from hina_kohya.numerics import companding

CURRENT = 1


def options(techniques: Mapping[str, Mapping[str, Any]], version: int) -> dict[str, dict[str, Any]]:
    """A group's options by technique, with those that came later as they were before there was an option."""
    result = {name: dict(own) for name, own in techniques.items()}
    if version < 1 and "muon" in result:
        result["muon"].setdefault("largest", math.inf)
    return {name: dc.asdict(registry.build(name, **own)) for name, own in result.items()}


def upgraded(entry: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A parameter's state as the current format has it; values move by a code at most."""
    if version >= CURRENT:
        return dict(entry)
    result = dict(entry)
    for key, code in entry.items():
        scale = entry.get(f"{key}.scale")
        if isinstance(scale, Tensor):
            result[key], result[f"{key}.scale"] = _from_format_0(code, scale)
    return result


def _from_format_0(code: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [nb, bs] and scales [nb, 1], block by block."""
    number = code.to(torch.float32)
    if code.dtype == torch.int8:
        value = number.abs() * number * (scale / 127**2)
        scale = companding.largest(value)
        return companding.encode_signed(value, scale), scale
    value = ((number + 1) / 256) ** 4 * scale
    nearest = torch.zeros_like(code, dtype=torch.int32)
    return companding.encode_unsigned(value, scale, nearest), scale
