"""From --optimizer_type and --optimizer_args to an optimizer, with sd-scripts' meaning and better errors."""

import ast
import importlib
import inspect
from typing import Any

import torch

from .errors import UserError, did_you_mean


def parse_args(words: list[str], option: str = "optimizer_args") -> dict[str, Any]:
    """`k=literal` words to keyword arguments; whatever sd-scripts refuses is refused here, with the reason."""
    kwargs: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isascii() or key != key.strip() or not key:
            raise UserError(f"{option}: {word!r} must be name=value without spaces around the name")
        if key in ("lr", "params"):
            raise UserError(f"{option}: {key} is not given here; the learning rate is --learning_rate")
        if key in kwargs:
            raise UserError(f"{option}: {key} is given twice")
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError) as exc:
            fix = f"{key}={text.capitalize()}" if text.lower() in ("true", "false", "none") else f"\"{key}='{text}'\""
            raise UserError(f"{option}: {text!r} in {word!r} is not a Python literal; write {fix}") from exc
        if text.rstrip().endswith(",") and isinstance(value, tuple):
            raise UserError(f"{option}: {word!r} ends in a comma; arguments are separated by spaces")
        kwargs[key] = value
    return kwargs


def resolve(name: str) -> type[torch.optim.Optimizer]:
    """pkg.module.Class, a class of hina_kohya, torch.optim or bitsandbytes' 8-bit and paged ones; case-insensitive."""
    name = name or "AdamW"
    if "." in name:
        module_name, _, class_name = name.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as exc:
            raise UserError(f"optimizer_type {name}: cannot import {module_name} ({exc}); is it installed?") from exc
        if not hasattr(module, class_name):
            raise UserError(f"optimizer_type {name}: {module_name} has no {class_name}" + _hint(class_name, module))
        return getattr(module, class_name)
    lower = name.lower()
    sources = ["hina_kohya", "torch.optim"]
    if lower.endswith("8bit") or lower.startswith("paged") or lower == "lion":
        sources.append("bitsandbytes.optim")
    known: dict[str, tuple[str, str]] = {}
    for source in sources:
        for public in _classes(source):
            known.setdefault(public.lower(), (source, public))
    if lower not in known:
        hint = did_you_mean(name, [public for _, public in known.values()])
        raise UserError(f"optimizer_type {name} is none of hina_kohya, torch.optim or bitsandbytes{hint}")
    source, public = known[lower]
    return getattr(importlib.import_module(source), public)


def _classes(source: str) -> list[str]:
    return [name for name in dir(importlib.import_module(source)) if name[0].isupper() and name != "Optimizer"]


def _hint(word: str, module) -> str:
    return did_you_mean(word, [n for n in dir(module) if n[0].isupper()])


def make(name: str, words: list[str], groups: list[dict], lr: float) -> tuple[str, torch.optim.Optimizer]:
    """(what ss_optimizer records, the optimizer)."""
    cls, kwargs = resolve(name), parse_args(words)
    try:
        optimizer = cls(groups, lr=lr, **kwargs)  # type: ignore[call-arg]
    except (TypeError, ValueError, AttributeError) as exc:
        parameters = inspect.signature(cls).parameters
        unknown = [k for k in kwargs if k not in parameters]
        known = [k for k in parameters if k not in ("self", "params", "kwargs")]
        # A class that takes **kwargs names the culprit itself.
        hint = did_you_mean(unknown[0], known) if unknown and "mean" not in str(exc) else ""
        raise UserError(f"optimizer_type {name} refused its arguments: {exc}{hint}") from exc
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer_type {name} is not a torch.optim.Optimizer but {type(optimizer).__name__}")
    described = ",".join(f"{k}={v}" for k, v in kwargs.items())
    return f"{cls.__module__}.{cls.__name__}" + (f"({described})" if described else ""), optimizer
