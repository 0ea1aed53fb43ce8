r"""How alike two adapters are, module by module, from their factors.

.. math::
    \cos = \frac{\langle A, B \rangle}{\|A\| \|B\|}, \quad
    \langle U_1 D_1, U_2 D_2 \rangle = \sum (U_1^\top U_2) \odot (D_1 D_2^\top), \quad
    \text{overlap} = \frac{\|P_B A Q_B\|^2}{\|A\|^2}

with the projections P_B and Q_B on B's outputs and inputs: the share of A that happens where B happens, whatever B does
there. Two runs of one data set overlap and have a cosine; two different subjects have neither.
"""

import dataclasses as dc
from collections.abc import Callable
from pathlib import Path

import torch

from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.forms import Product
from hina_kohya.loras.spectrum import factors
from hina_kohya.loras.summary import blocks_of
from hina_kohya.loras.summing import Module, Source, gather


@dc.dataclass
class Likeness:
    """Sums over the modules of a block. inner: <A, B>; first, second: |A|^2, |B|^2; inside: |P_B A Q_B|^2."""

    modules: int = 0
    inner: float = 0.0
    first: float = 0.0
    second: float = 0.0
    inside: float = 0.0

    @property
    def cosine(self) -> float:
        return self.inner / (self.first * self.second) ** 0.5 if self.first and self.second else 0.0

    @property
    def overlap(self) -> float:
        return self.inside / self.first if self.first else 0.0

    def add(self, other: "Likeness") -> None:
        for field in dc.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def compare(
    one: Path, other: Path, tick: Callable[[str, int], object] = lambda what, total: None
) -> tuple[dict[str, Likeness], tuple[int, int]]:
    """(block -> likeness over the modules that both files have, modules that only the first and second have).

    Raises AdapterError, also where no module is in both.
    """
    modules, _, files, _ = gather([Source(one), Source(other)])
    shared = [module for module in modules if len(module.terms) == 2]
    if not shared:
        raise AdapterError(f"{one} and {other} have no module in common; they are of different base models")
    blocks = blocks_of(shared)
    found: dict[str, Likeness] = {}
    order = {name: number for number, name in enumerate(blocks)}
    for module in sorted(shared, key=lambda module: order[module.name]):
        tick("comparing", len(shared))
        likeness = _alike(module)
        if likeness is not None:
            found.setdefault(blocks[module.name], Likeness()).add(likeness)
    lone = [sum(len(module.terms) == 1 and module.terms[0].file is file for module in modules) for file in files]
    return found, (lone[0], lone[1])


def _alike(module: Module) -> Likeness | None:
    each = [dc.replace(module, terms=(term,)).form() for term in module.terms]
    if each[0] is None or each[1] is None:
        return None
    if each[0].shape != each[1].shape:
        shapes = " and ".join(f"{form.shape[0]} x {form.shape[1]}" for form in each if form is not None)
        raise AdapterError(f"{module.name} is {shapes} in these files; they are of different base models")
    a, b = (factors(form, min(form.shape)) for form in each if form is not None)
    inner = float(((a.up.T @ b.up) * (a.down @ b.down.T)).sum())
    return Likeness(1, inner, _square(a), _square(b), _square(_inside(a, b)))


def _inside(a: Product, b: Product) -> Product:
    outputs, inputs = torch.linalg.qr(b.up).Q, torch.linalg.qr(b.down.T).Q
    return Product(outputs.T @ a.up, a.down @ inputs)


def _square(product: Product) -> float:
    return float(((product.up.T @ product.up) * (product.down @ product.down.T)).sum())
