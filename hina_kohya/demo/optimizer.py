"""From --optimizer_type to an optimizer, with sd-scripts' meaning and better errors."""

import importlib
from typing import Any

from torch.optim import Optimizer

from hina_kohya.trainers import optimizer_names, optimizers

from .errors import UserError, did_you_mean


def resolve(name: str) -> type[Optimizer]:
    """pkg.module.Class, a registered one, torch.optim's or bitsandbytes' 8-bit and paged ones; case does not matter."""
    name = name or "AdamW"
    if "." in name:
        module_name, _, class_name = name.rpartition(".")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as exc:
            raise UserError(f"optimizer_type {name}: cannot import {module_name} ({exc}); is it installed?") from exc
        if not hasattr(module, class_name):
            hint = did_you_mean(class_name, _classes(module_name))
            raise UserError(f"optimizer_type {name}: {module_name} has no {class_name}{hint}")
        return getattr(module, class_name)
    sources = ["torch.optim"]
    lower = name.lower()
    if lower.endswith("8bit") or lower.startswith("paged") or lower == "lion":
        sources.append("bitsandbytes.optim")
    known: dict[str, tuple[str, str]] = {}
    for source in sources:
        for public in _classes(source):
            known.setdefault(public.lower(), (source, public))
    if lower in known:
        source, public = known[lower]
        return getattr(importlib.import_module(source), public)
    entry = optimizer_names.find(name)
    if entry is None:
        hint = did_you_mean(
            name, [*(public for _, public in known.values()), *(each.name for each in optimizer_names.entries())]
        )
        raise UserError(f"optimizer_type {name} is neither registered nor of torch.optim or bitsandbytes{hint}")
    return entry.load()


def _classes(source: str) -> list[str]:
    return [name for name in dir(importlib.import_module(source)) if name[0].isupper() and name != "Optimizer"]


def make(name: str, words: list[str], groups: list[dict[str, Any]], lr: float) -> tuple[str, Optimizer]:
    """(what ss_optimizer records, the optimizer)."""
    path, arguments, optimizer = optimizers.build(resolve(name), words, groups, lr)
    return path + (f"({arguments})" if arguments else ""), optimizer
