"""What becomes of a module in the file that is written: names, shapes, and what each direction costs."""

import dataclasses as dc
import functools
import math

import torch
from torch import Tensor

from hina_kohya.loras import names, parts, writing
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.forms import Product
from hina_kohya.loras.level import Spectrum
from hina_kohya.loras.spectrum import Moments, factors, values
from hina_kohya.loras.summing import Module

UP, DOWN = 0, 1


@dc.dataclass(frozen=True)
class Slot:
    """One module of the result.

    name   : there
    shape  : (m, n) of the weight as a matrix; None for norms and biases alone
    extras : key -> (part, shape) of what has no rank
    """

    module: Module
    name: str
    style: str
    dtype: torch.dtype
    shape: tuple[int, int] | None
    kernel: tuple[int, ...]
    extras: dict[str, tuple[str, tuple[int, ...]]]
    spectrum: Spectrum
    moments: Moments | None

    def layout(self, rank: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """key -> shape, dtype; without directions only changes of norms and biases are left."""
        kept = {key: (shape, self.dtype) for key, (part, shape) in self.extras.items()
                if rank or part in (*parts.ADDED, parts.DIFF)}  # fmt: skip
        if self.shape is None or not rank:
            return kept
        m, n = self.shape
        up, down = self.keys
        kept[up] = ((m, rank, *[1] * len(self.kernel)), self.dtype)
        kept[down] = ((rank, n // math.prod(self.kernel), *self.kernel), self.dtype)
        if self.has_alpha:
            kept[self.alpha] = ((), torch.float32)  # bf16 holds no 257
        return kept

    @property
    def keys(self) -> tuple[str, str]:
        up, down = names.ENDINGS[self.style]
        return f"{self.name}.{up}", f"{self.name}.{down}"

    @property
    def has_alpha(self) -> bool:
        return self.style in ("kohya", "comfy")

    @property
    def alpha(self) -> str:
        return f"{self.name}.alpha"

    def tensor(self, key: str, rank: int) -> Tensor:
        """One of `layout(rank)`."""
        if self.has_alpha and key == self.alpha:
            return torch.tensor(float(rank))  # alpha / rank is 1, also where alpha is not read
        if key in self.extras:
            part, shape = self.extras[key]
            whole = self.module.magnitude() if part == parts.MAGNITUDE else self.module.added()[part]
            return whole.reshape(shape)
        product = _factors(self, rank)
        return (product.up if key == self.keys[UP] else product.down).reshape(self.layout(rank)[key][0])

    def __hash__(self) -> int:
        return id(self)


@functools.lru_cache(1)  # a module's two factors are written one after the other
def _factors(slot: Slot, rank: int) -> Product:
    form = slot.module.form()
    assert form is not None
    product = factors(form, rank, slot.moments)
    missing = rank - product.up.shape[1]
    if not missing:
        return product
    m, n = form.shape  # zeros: one rank for every module, or a DoRA that has a magnitude alone
    up = torch.cat([product.up, torch.zeros(m, missing, dtype=torch.float64)], 1)
    return Product(up, torch.cat([product.down, torch.zeros(missing, n, dtype=torch.float64)]), form.kernel)


def slot(module: Module, name: str, style: str, dtype: torch.dtype, moments: Moments | None, most: int) -> Slot:
    """Read and decompose a module. most: bytes that the file will not have more of. Raises AdapterError."""
    form = module.form()
    extras = {f"{name}.{part}": (part, shape) for part, shape in module.added_shapes().items()}
    if form is None:
        return Slot(module, name, style, dtype, None, (), extras, Spectrum(torch.zeros(0), 1), None)
    if module.is_dora:
        key, shape = _magnitude(name, style, module, form.shape[0], form.kernel)
        extras[key] = (parts.MAGNITUDE, shape)
    draft = Slot(module, name, style, dtype, form.shape, form.kernel, extras, Spectrum(torch.zeros(0), 1), moments)
    with_one, without = draft.layout(1), draft.layout(0)
    m, n = form.shape
    entry = sum(writing.entry_bytes(key, (*shape, 99), kind, most) + _bytes(shape, kind)
                for key, (shape, kind) in with_one.items() if key not in without)  # fmt: skip
    cost = (m + n) * dtype.itemsize
    found = Spectrum(values(form, moments), cost, entry - cost, least=int(module.is_dora))
    return dc.replace(draft, spectrum=found)


def _magnitude(name: str, style: str, module: Module, out: int, kernel: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Key and shape of DoRA's magnitudes: `dora_scale` [out, 1, ..] or [1, in, ..], peft's [out] or [1, out, ..].

    Raises AdapterError where the style has no place for them.
    """
    key, shape = module.magnitude_key()
    is_per_output = key.endswith(("lora_magnitude_vector", "lora_magnitude_vector.weight")) or shape[0] == out
    if is_per_output and math.prod(shape) != out:
        raise AdapterError(f"{key} is {list(shape)} and the module has {out} outputs; the file is damaged")
    ones = (1,) * len(kernel)
    if style in ("kohya", "comfy"):
        return f"{name}.dora_scale", (out, 1, *ones) if is_per_output else shape
    if not is_per_output:
        raise AdapterError(f"{key} is {list(shape)}, one a row of inputs, which peft and diffusers lack; --names kohya")
    return f"{name}.lora_magnitude_vector", (1, out, *ones) if kernel else (out,)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
