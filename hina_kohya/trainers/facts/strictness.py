"""Values that a TOML lets through: at which of them sd-scripts is known to stop.

`scripts/make_strictness.py` measured it with 0.11.1 and a tiny SD 1.x, on `networks.lora`: a value at
which that run goes on may still stop another one.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

# Beside the table, which has no lists and no text.
_OTHERS = {
    "network_args": "a string is read letter by letter",
    "optimizer_args": "a string is read letter by letter",
    "lr_scheduler_args": "a string is read letter by letter",
    "resolution": "'int' object has no attribute 'split'",
    "text_encoder_lr": "can't multiply sequence by non-int of type 'float'",
}
_MEASURED = "measured: "


@lru_cache(maxsize=1)
def _table() -> Mapping[str, Mapping[str, str]]:
    return json.loads(Path(__file__).with_name("strictness.json").read_text(encoding="utf-8"))


def stops(key: str, value: Any) -> str:
    """How the run stops at a value of the wrong type; "" where that is not known."""
    if key in _OTHERS and value != "":
        return _MEASURED + _OTHERS[key]
    kind = "empty" if value == "" else "text" if isinstance(value, str) else "float" if isinstance(value, float) else ""
    failure = _table().get(key, {}).get(kind, "")
    return _MEASURED + failure if failure else ""


def choice_stops(key: str, value: Any) -> str:
    """How it stops at a word outside the choices; other numbers were not tried."""
    failure = _table().get(key, {}).get("outside", "") if isinstance(value, str) else ""
    return _MEASURED + failure if failure else ""


def too_low(key: str, value: float) -> str:
    """What happens at 0 or below it, "" where nothing is known to."""
    failure = _table().get(key, {}).get("0" if value == 0 else "-1", "") if value <= 0 else ""
    return _MEASURED + failure if failure else ""


def counts() -> tuple[str, ...]:
    """Options with a value that is too low."""
    return tuple(name for name, kinds in _table().items() if {"0", "-1"} & {*kinds})


def harmless_choice(key: str, value: Any, args: Mapping[str, Any]) -> bool:
    """A value outside the choices that says the same as none, or that is read only beside an option that is off.

    kohya_ss writes both into every file.
    """
    return (key, value) == ("max_token_length", 75) or (key == "dynamo_backend" and not args.get("torch_compile"))
