r"""Every adapter as a product of two factors, exactly, without building the m x n change of the weight.

.. math::
    \text{LoRA: } U D, \quad \text{Tucker: } U (T \times D), \quad
    \text{LoHa: } (U_1 D_1) \odot (U_2 D_2) = (U_1 \bullet U_2)(D_1 \ast D_2), \quad
    \text{LoKr: } W_1 \otimes W_2 = (U_1 \otimes U_2)(D_1 \otimes D_2)

with the row-wise Khatri-Rao product of the ups and the column-wise one of the downs: ranks r1 and r2 make r1 r2.
Convolutions are matrices [out, in * kh * kw]. All in float64; the scale alpha / rank is in the factors.
"""

import dataclasses as dc
import math

import torch
from torch import Tensor

from hina_kohya.loras import parts
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.parts import ALPHA, DIFF, DOWN, MID, UP


@dc.dataclass(frozen=True)
class Product:
    """up [m, K] @ down [K, n], the change of a weight whose further dimensions are `kernel`."""

    up: Tensor
    down: Tensor
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def scaled(self, factor: float) -> "Product":
        return self if factor == 1 else dc.replace(self, up=self.up * factor)

    def product(self) -> "Product":
        return self

    def reduced(self) -> "Product":
        """With no more columns than the smaller side of the weight has."""
        m, n = self.shape
        if self.up.shape[1] <= min(m, n):
            return self
        dense = self.up @ self.down
        eye = torch.eye(min(m, n), dtype=dense.dtype)
        return dc.replace(self, up=eye, down=dense) if m <= n else dc.replace(self, up=dense, down=eye)


@dc.dataclass(frozen=True)
class Kronecker:
    """left (x) right, each a Product: its singular values are all products of theirs."""

    left: Product
    right: Product
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        (a, c), (b, d) = self.left.shape, self.right.shape
        return a * b, c * d

    def scaled(self, factor: float) -> "Kronecker":
        return dc.replace(self, left=self.left.scaled(factor))

    def product(self) -> Product:
        left, right = self.left.reduced(), self.right.reduced()
        return Product(torch.kron(left.up, right.up), torch.kron(left.down, right.down), self.kernel)


Form = Product | Kronecker


def rank(shapes: dict[str, tuple[int, ...]]) -> int:
    """The rank a module was trained at, which its alpha is divided by. shapes: part -> shape."""
    if DOWN in shapes:
        return shapes[DOWN][0]
    if "hada_w1_b" in shapes:
        return shapes["hada_w1_b"][0]
    for part in ("lokr_w2_b", "lokr_w1_b"):
        if part in shapes:
            return shapes[part][0]
    return 1


def has_scale(shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether alpha means anything: a LoKr of two whole matrices and `full` are never scaled by it."""
    return bool({DOWN, "hada_w1_b", "lokr_w2_b", "lokr_w1_b"} & set(shapes))


def form(module: str, tensors: dict[str, Tensor], scale: float, kernel: tuple[int, ...] | None = None) -> Form:
    """The change of a module's weight.

    tensors: part -> tensor, without alpha and magnitude
    scale  : multiplies it: alpha / rank
    kernel : of the layer, where the file has the factors of a convolution as matrices; None reads it off the tensors

    Raises AdapterError where shapes do not fit.
    """
    wide = {part: tensor.double() for part, tensor in tensors.items() if part != ALPHA}
    if DOWN in wide:
        made: Form = _lora(module, wide)
    elif DIFF in wide:
        made = _full(wide[DIFF])
    elif "hada_w1_a" in wide:
        made = _loha(module, wide)
    else:
        made = _lokr(module, wide)
    if kernel is not None and not made.kernel:
        if made.shape[1] % math.prod(kernel):
            raise AdapterError(
                f"{module} has {made.shape[1]} input columns, no multiple of its kernel {'x'.join(map(str, kernel))}; "
                "the file is damaged or of another model"
            )
        made = dc.replace(made, kernel=kernel)
    return made.scaled(scale)


def _lora(module: str, tensors: dict[str, Tensor]) -> Product:
    up, down, mid = tensors[UP], tensors[DOWN], tensors.get(MID)
    if up.dim() < 2 or down.dim() < 2 or math.prod(up.shape[2:]) != 1:
        raise AdapterError(f"{module}: {_shapes(tensors)} are no pair of a LoRA; the file is damaged")
    flat = up.flatten(1)
    if mid is None:
        if flat.shape[1] != down.shape[0]:
            raise AdapterError(
                f"{module}: the up factor has rank {flat.shape[1]} and the down factor {down.shape[0]}; "
                "the file is damaged, get it again"
            )
        return Product(flat, down.flatten(1), tuple(down.shape[2:]))
    flat_down = down.flatten(1)
    return Product(flat, _core(module, mid, flat.shape[1], flat_down, tensors), tuple(mid.shape[2:]))


def _loha(module: str, tensors: dict[str, Tensor]) -> Product:
    one, other = (_half(module, tensors, f"hada_w{i}", f"hada_t{i}") for i in (1, 2))
    if one.shape != other.shape:
        raise AdapterError(f"{module}: the two products have shapes {one.shape} and {other.shape}; the file is damaged")
    up = (one.up.unsqueeze(2) * other.up.unsqueeze(1)).flatten(1)
    down = (one.down.unsqueeze(1) * other.down.unsqueeze(0)).flatten(0, 1)
    return Product(up, down, one.kernel)


def _lokr(module: str, tensors: dict[str, Tensor]) -> Kronecker:
    left, right = (
        _full(tensors[f"lokr_w{i}"]) if f"lokr_w{i}" in tensors else _half(module, tensors, f"lokr_w{i}", f"lokr_t{i}")
        for i in (1, 2)
    )
    return Kronecker(left, right, right.kernel)


def _half(module: str, tensors: dict[str, Tensor], name: str, core: str) -> Product:
    """`name_a @ name_b`; with a Tucker core both are [rank, side]."""
    a, b, t = tensors[f"{name}_a"], tensors[f"{name}_b"], tensors.get(core)
    if t is not None:
        return Product(a.T, _core(module, t, a.shape[0], b, tensors), tuple(t.shape[2:]))
    if a.dim() != 2 or b.dim() < 2 or a.shape[1] != b.shape[0]:
        raise AdapterError(
            f"{module}: {name}_a is {list(a.shape)} and {name}_b {list(b.shape)}, whose ranks do not match; "
            "the file is damaged, get it again"
        )
    return Product(a, b.flatten(1), tuple(b.shape[2:]))


def _core(module: str, core: Tensor, rank: int, down: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    """core [r, s, kh, kw] times down [s, in] over s: [r, in * kh * kw]."""
    if core.dim() < 2 or core.shape[:2] != (rank, down.shape[0]):
        raise AdapterError(f"{module}: {_shapes(tensors)} do not belong together; the file is damaged, get it again")
    return torch.einsum("ijk,jn->ink", core.flatten(2) if core.dim() > 2 else core.unsqueeze(2), down).flatten(1)


def _full(weight: Tensor) -> Product:
    flat = weight.flatten(1)
    m, n = flat.shape
    eye = torch.eye(min(m, n), dtype=flat.dtype)
    up, down = (eye, flat) if m <= n else (flat, eye)
    return Product(up, down, tuple(weight.shape[2:]))


def added(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Changes of biases and norms; `diff` of a vector is one, too."""
    kept = {part: tensor for part, tensor in tensors.items() if part in parts.ADDED}
    if DIFF in tensors and tensors[DIFF].dim() < 2:
        kept[DIFF] = tensors[DIFF]
    return kept


def _shapes(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in tensors.items())
