"""Adapter files, read lazily: the header first, then one tensor at a time."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open  # type: ignore[reportAttributeAccessIssue]
from torch import Tensor

from hina_kohya.loras import parts
from hina_kohya.loras.errors import AdapterError

MOST_HEADER = 100_000_000  # bytes; safetensors' own bound
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class AdapterFile:
    """An open file of one adapter. Raises AdapterError, one line, for what is none; not `strict`: for what is damaged.

    modules : module -> part -> key, in the file's order; `parts.ENDINGS` has the parts
    shapes  : key -> shape
    dtypes  : key -> safetensors' name of the dtype
    """

    def __init__(self, path: Path, strict: bool = True):
        self.path = path
        header = _header(path)
        try:
            self._file: Any = safe_open(path, "pt")
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{path} is damaged: {error}; get it again") from error
        self.metadata: dict[str, str] = dict(header.pop("__metadata__", None) or {})
        self.shapes = {key: tuple(entry["shape"]) for key, entry in header.items()}
        self.dtypes = {key: entry["dtype"] for key, entry in header.items()}
        self.modules = self._modules() if strict else {}

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def tensor(self, key: str) -> Tensor:
        """One tensor. Raises AdapterError where a value is not finite."""
        tensor = self._file.get_tensor(key)
        if not torch.isfinite(tensor.float()).all():
            count = int((~torch.isfinite(tensor.float())).sum())
            raise AdapterError(
                f"{self.path}: {count} of {tensor.numel()} values of {key} are NaN or infinite; "
                "use a file saved before the training broke"
            )
        return tensor

    def dtype(self) -> torch.dtype:
        """The dtype that holds every factor: what a result is written in by default. fp8 is widened to bf16."""
        keys = [key for module in self.modules.values() for part, key in module.items() if part != parts.ALPHA]
        widest = [DTYPES.get(self.dtypes[key], torch.bfloat16) for key in keys]
        result = widest[0]
        for dtype in widest[1:]:
            result = torch.promote_types(result, dtype)
        return result

    def _modules(self) -> dict[str, dict[str, str]]:
        modules: dict[str, dict[str, str]] = {}
        foreign = []
        for key in self.shapes:
            place = parts.split(key)
            if place is None:
                foreign.append(key)
                continue
            module, part = place
            if part in modules.setdefault(module, {}):
                raise AdapterError(f"{self.path}: {modules[module][part]} and {key} are the same thing; keep one")
            modules[module][part] = key
        what = next(((key, kind) for key in self.shapes if (kind := parts.unsupported(key))), None)
        if what:
            raise AdapterError(f"{self.path}: {what[0]} belongs to {what[1]}; this needs LoRA, LoCon, LoKr or LoHa")
        whole = {module for module, found in modules.items() if set(found) - {parts.ALPHA}}
        if not whole:
            first = next(iter(self.shapes), None)
            content = f"{len(self.shapes)} tensors, the first {first}" if first else "no tensors"
            raise AdapterError(f"{self.path} is no adapter: it has {content}; give a LoRA, LoCon, LoKr or LoHa file")
        if foreign:
            raise AdapterError(
                f"{self.path}: {len(foreign)} of {len(self.shapes)} tensors are of no LoRA, LoCon, LoKr or LoHa, "
                f"the first {foreign[0]}; take them out first"
            )
        for module, found in modules.items():
            self._check(module, found)
        return modules

    def _check(self, module: str, found: dict[str, str]) -> None:
        if set(found) == {parts.ALPHA}:
            raise AdapterError(
                f"{self.path}: {module} has an alpha and no factors; the file is not whole, get it again"
            )
        try:
            parts.check_whole(module, set(found))
        except AdapterError as error:
            raise AdapterError(f"{self.path}: {error}") from None
        for key in found.values():
            if self.dtypes[key] not in _FLOATS:
                raise AdapterError(f"{self.path}: {key} is {self.dtypes[key]}, not one of {', '.join(_FLOATS)}")
            if 0 in self.shapes[key]:
                raise AdapterError(f"{self.path}: {key} is empty, {list(self.shapes[key])}; the file is damaged")


def _header(path: Path) -> dict[str, Any]:
    """The header of a file that looks like safetensors; its tensors' places are checked by the library."""
    if path.is_dir():
        raise AdapterError(f"{path} is a folder; give the .safetensors file in it")
    if not path.exists():
        raise AdapterError(f"there is no file {path}")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if size == 0:
            raise AdapterError(f"{path} is empty; get it again")
        if start.startswith(_ZIP) or (start[:1] == _PICKLE and path.suffix != ".safetensors"):
            raise AdapterError(
                f"{path} is a pickle of torch.save, which can run code; load it where you trust it and save it with "
                "safetensors.torch.save_file"
            )
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(MOST_HEADER, size - 8):
            raise AdapterError(
                f"{path} is no .safetensors file or a damaged one: its first 8 bytes promise a header of {length} "
                f"bytes and at most {max(min(MOST_HEADER, size - 8), 0)} can be there; get it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged: its header is no JSON ({str(error)[:80]}); get it again") from None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise AdapterError(f"{path} is damaged: its header is no table of tensors; get it again")
    for key, entry in header.items():
        if key != "__metadata__" and not _entry_is_sound(entry):
            raise AdapterError(f"{path} is damaged: the entry of {key[:80]} is {str(entry)[:80]}; get it again")
    return header


def _entry_is_sound(entry: dict[str, Any]) -> bool:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        return False
    return isinstance(entry.get("dtype"), str) and math.prod(shape) < 1 << 48


def sha256(path: Path) -> str:
    """Of a whole file, in hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_same(sources: list[Path], target: Path) -> None:
    """Raises AdapterError where writing the target would lose a source, by whatever name or link."""
    if target.suffix != ".safetensors":
        raise AdapterError(f"-o {target} must end with .safetensors")
    if target.is_dir():
        raise AdapterError(f"-o {target} is a folder; name a file in it")
    for source in sources:
        if target.resolve() == source.resolve() or (
            target.exists() and source.exists() and os.path.samefile(target, source)
        ):
            raise AdapterError(f"{target} is the file that is read, and would be lost; give -o another name")
