"""By what a file's factors are multiplied: alpha / rank, where alpha is in the file, beside it, or nowhere.

kohya's files have an alpha per module. peft keeps r, lora_alpha and exceptions in adapter_config.json beside the file,
and newer diffusers the same in the metadata. Without any of them every program multiplies by 1.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from hina_kohya.loras import forms, names, parts
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.reading import AdapterFile

CONFIG = "adapter_config.json"
_DIFFUSERS = "lora_adapter_metadata"


class Scales:
    """The scale of each module of a file. note: what the reader should know about where it came from."""

    def __init__(self, file: AdapterFile):
        self.file = file
        self.note = ""
        alphas = [module for module, found in file.modules.items() if parts.ALPHA in found]
        self.config: dict[str, Any] = {}
        if not alphas:
            self.config = _beside(file) or _within(file)
            if not self.config and any(forms.has_scale(self._shapes(module)) for module in file.modules):
                config = f", and no {CONFIG} beside it" if names.styles_of([*file.modules]) == "peft" else ""
                self.note = f"{file.path.name} has no alpha{config}: its scale is 1, as programs take it"

    def of(self, module: str) -> float:
        """alpha / rank. Raises AdapterError."""
        shapes = self._shapes(module)
        found = self.file.modules[module]
        if parts.ALPHA in found:
            if not forms.has_scale(shapes):
                return 1.0
            tensor = self.file.tensor(found[parts.ALPHA])
            if tensor.numel() != 1:
                raise AdapterError(f"{self.file.path}: {found[parts.ALPHA]} has {tensor.numel()} values and not 1")
            if not float(tensor):
                raise AdapterError(
                    f"{self.file.path}: {found[parts.ALPHA]} is 0, which sd-scripts reads as the rank and ComfyUI as "
                    "nothing; write what it was trained with"
                )
            return float(tensor) / forms.rank(shapes)
        return self._configured(module) if self.config else 1.0

    def _configured(self, module: str) -> float:
        place = module.removeprefix("base_model.model.")
        kind = self.config.get("peft_type", "LORA")
        rank = _pattern(self.config.get("rank_pattern"), place, self.config.get("r", 8))
        plain = "lora_alpha" if kind == "LORA" else "alpha"
        alpha = _pattern(self.config.get("alpha_pattern"), place, self.config.get(plain, 8))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _shapes(self, module: str) -> dict[str, tuple[int, ...]]:
        return {part: self.file.shapes[key] for part, key in self.file.modules[module].items()}


def _beside(file: AdapterFile) -> dict[str, Any]:
    """peft's configuration in the file's folder, if the file is one of peft's."""
    path = file.path.with_name(CONFIG)
    if names.style_of(next(iter(file.modules))) not in ("peft", "") or not path.is_file():
        return {}
    config = _json(path.read_text(encoding="utf-8"), path)
    if config.get("fan_in_fan_out"):
        raise AdapterError(f"{path}: fan_in_fan_out is on, so weights are transposed; that is not supported")
    for option in ("layer_replication", "lora_bias", "use_qalora"):
        if config.get(option):
            raise AdapterError(f"{path}: {option} is on; that is not supported")
    return config


def _within(file: AdapterFile) -> dict[str, Any]:
    """What newer diffusers writes into the metadata: one configuration a model, its keys prefixed."""
    if _DIFFUSERS not in file.metadata:
        return {}
    flat = _json(file.metadata[_DIFFUSERS], file.path)
    prefixes = {key.partition(".")[0] for key in flat}
    config: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    for prefix in prefixes:
        one = {key.removeprefix(f"{prefix}."): value for key, value in flat.items() if key.startswith(f"{prefix}.")}
        for pattern, plain in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
            inner = {f"{prefix}.{key}": value for key, value in (one.get(pattern) or {}).items()}
            config[pattern] |= {**inner, rf"{prefix}\..*": one.get(plain, 8)}
        config["use_rslora"] = config.get("use_rslora") or one.get("use_rslora")
    return config


def _pattern(table: dict[str, Any] | None, module: str, default: float) -> float:
    """peft's rule: the first pattern that ends the module's name."""
    for pattern, value in (table or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _json(text: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise AdapterError(f"{path}: its configuration is no JSON ({error}); get it again") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: its configuration is no table; get it again")
    return config
