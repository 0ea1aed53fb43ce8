"""The modules of one or more files, and the weighted sum of what the files do to each."""

import dataclasses as dc
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hina_kohya.loras import forms, kernels, names, parts
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.forms import Form, Product
from hina_kohya.loras.names import Place
from hina_kohya.loras.parts import MAGNITUDE
from hina_kohya.loras.reading import AdapterFile
from hina_kohya.loras.scales import Scales


@dc.dataclass(frozen=True)
class Source:
    """A file and how much of it."""

    path: Path
    weight: float = 1.0


@dc.dataclass(frozen=True)
class Term:
    """What one file does to a module; module: its name there."""

    file: AdapterFile
    scales: Scales
    weight: float
    module: str

    def tensors(self, kinds: Sequence[str] | None = None) -> dict[str, Tensor]:
        """part -> tensor, of some parts or all."""
        found = self.file.modules[self.module]
        return {part: self.file.tensor(key) for part, key in found.items() if kinds is None or part in kinds}

    @property
    def parts(self) -> set[str]:
        return set(self.file.modules[self.module])

    @property
    def algorithm(self) -> str:
        shapes = [self.file.shapes[key] for part, key in self.file.modules[self.module].items() if part != MAGNITUDE]
        return parts.algorithm(self.parts, next((shape[2:] for shape in shapes if len(shape) > 2), ()))


@dc.dataclass(frozen=True)
class Module:
    """One layer of the model. name: in the first file that has it; place: None where names are nobody's."""

    name: str
    place: Place | None
    terms: tuple[Term, ...]
    kernel: tuple[int, ...] | None = None

    def form(self) -> Form | None:
        """The weighted sum of all files, in float64; None for a module of norms and biases. Raises AdapterError."""
        found = [self._form(term) for term in self.terms]
        made = [form for form in found if form is not None]
        if len(made) < 2:
            return made[0] if made else None
        if len({form.shape for form in made}) > 1:
            shapes = ", ".join(f"{form.shape[0]} x {form.shape[1]}" for form in made)
            raise AdapterError(f"{self.name} is {shapes} in these files; they are of different base models")
        products = [form.product() for form in made]
        kernel = next((form.kernel for form in products if form.kernel), ())
        up = torch.cat([product.up for product in products], dim=1)
        return Product(up, torch.cat([product.down for product in products]), kernel).reduced()

    def _form(self, term: Term) -> Form | None:
        tensors = term.tensors()
        factors = {part: tensor for part, tensor in tensors.items() if part not in (*parts.ADDED, MAGNITUDE)}
        if not set(factors) - {parts.ALPHA} or (parts.DIFF in factors and factors[parts.DIFF].dim() < 2):
            return None
        try:
            kernel = None if parts.DOWN in factors else self.kernel
            return forms.form(term.module, factors, term.scales.of(term.module) * term.weight, kernel)
        except AdapterError as error:
            raise AdapterError(f"{term.file.path}: {error}") from None

    def added(self) -> dict[str, Tensor]:
        """The weighted sum of changes of biases and norms: part -> tensor."""
        total: dict[str, Tensor] = {}
        for term in self.terms:
            for part, tensor in forms.added(term.tensors((*parts.ADDED, parts.DIFF))).items():
                total[part] = total.get(part, 0) + tensor.double() * term.weight
        return total

    def added_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = [(part, term.file.shapes[key]) for term in self.terms
                  for part, key in term.file.modules[term.module].items()]  # fmt: skip
        return {part: shape for part, shape in shapes if part in parts.ADDED or (part == parts.DIFF and len(shape) < 2)}

    @property
    def is_dora(self) -> bool:
        return MAGNITUDE in self.terms[0].parts

    def magnitude(self) -> Tensor:
        """DoRA's magnitudes: kept as they are, for they cannot be folded without the base weight."""
        return self.terms[0].tensors((MAGNITUDE,))[MAGNITUDE]

    def magnitude_key(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape of the magnitudes in their file."""
        term = self.terms[0]
        key = term.file.modules[term.module][MAGNITUDE]
        return key, term.file.shapes[key]

    def check_sum(self) -> None:
        """Raises AdapterError for a sum that no file can hold without the base model."""
        for term in self.terms:
            if MAGNITUDE not in term.parts:
                continue
            where = f"{term.file.path} has a dora_scale at {self.name}, which no sum can hold without the base model"
            if term.weight != 1:
                raise AdapterError(f"{where}: its weight is {term.weight:g} and must be 1")
            if len(self.terms) > 1:
                raise AdapterError(f"{where}; merge a DoRA into the base model, or resize it alone")


def gather(sources: Sequence[Source]) -> tuple[list[Module], names.Model, list[AdapterFile], list[str]]:
    """(modules, what names depend on, files, notes). Raises AdapterError."""
    files = [AdapterFile(source.path) for source in sources]
    scales = [Scales(file) for file in files]
    everything = [name for file in files for name in file.modules]
    metadata = next((file.metadata for file in files if "ss_base_model_version" in file.metadata), {})
    model = names.model_of(everything, metadata)
    terms: dict[Place | str, list[Term]] = {}
    for source, file, scale in zip(sources, files, scales, strict=True):
        for name in file.modules:
            found = terms.setdefault(_key(name, model, len(files) > 1), [])
            if any(term.file is file for term in found):
                raise AdapterError(f"{file.path}: {name} and {found[0].module} are the same module; keep one")
            found.append(Term(file, scale, source.weight, name))
    is_sd1 = _is_sd1(files, metadata)
    modules = []
    for key, found in terms.items():
        place = key if isinstance(key, Place) else None
        kernel = kernels.kernel(place, is_sd1) or None if place and model.unet else None
        modules.append(Module(found[0].module, place, tuple(found), kernel))
    notes = [scale.note for scale in scales if scale.note]
    return modules, model, files, notes


def _key(name: str, model: names.Model, several: bool) -> Place | str:
    """What the same module of another file has, too."""
    try:
        return names.place_of(name, model)
    except AdapterError:
        if several and names.style_of(name) not in ("", "kohya"):
            raise
        return name


def _is_sd1(files: Sequence[AdapterFile], metadata: dict[str, str]) -> bool:
    """By the width of the text encoder, which cross-attention reads; or by what the file says."""
    if metadata.get("ss_base_model_version", "").startswith("sd_v1"):
        return True
    for file in files:
        for name, found in file.modules.items():
            if name.replace(".", "_").endswith("attn2_to_k"):
                return _width({part: file.shapes[key] for part, key in found.items()}) == 768
    return False


def _width(shapes: dict[str, tuple[int, ...]]) -> int:
    """Inputs of a linear layer."""
    for part in (parts.DOWN, "hada_w1_b", parts.DIFF):
        if part in shapes:
            return shapes[part][1]
    left, right = (shapes.get(side) or shapes[f"{side}_b"] for side in ("lokr_w1", "lokr_w2"))
    return left[1] * right[1]
