"""Does a value have the type that sd-scripts needs? It uses what a TOML says as it is (`read_config_from_file`)."""

from collections.abc import Mapping
from typing import Any

from hina_kohya.check.schema import Option

_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# Their networks take one number for all text encoders, too (NetworkTrainer.train).
_LIST_OR_ONE = ("text_encoder_lr",)


def fits(option: Option, value: Any) -> bool:
    if option.list:
        if isinstance(value, (list, tuple)):
            return all(_fits(option.type, each) for each in value)
        return option.name in _LIST_OR_ONE and _fits(option.type, value)
    return _fits(option.type, value)


def _fits(kind: str, value: Any) -> bool:
    if kind == "flag":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    return isinstance(value, {"int": int, "float": (int, float), "steps": (int, float), "str": str}[kind])


def meant(option: Option, value: Any) -> Any:
    """The value in the right type, None where nobody can tell."""
    if option.list:
        words = value if isinstance(value, list) else value.split() if isinstance(value, str) else [value]
        if isinstance(value, Mapping):
            words = [f"{name}={each if option.name == 'network_args' else repr(each)}" for name, each in value.items()]
        converted = [_meant(option.type, each) for each in words]
        return None if None in converted else converted
    return _meant(option.type, value)


def _meant(kind: str, value: Any) -> Any:
    if kind == "flag":
        return _SWITCHES.get(str(value).strip().lower())
    if kind == "str":
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if kind in ("int", "steps") and number.is_integer():
        return int(number)
    return None if kind == "int" else number
