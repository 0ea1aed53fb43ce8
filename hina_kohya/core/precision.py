"""Full precision for a step, whatever the trainer switched on around it: autocast, TF32, bf16 products."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_REDUCED = ("tf32", "bf16")


@contextmanager
def full_precision(device_types: Iterable[str]) -> Iterator[None]:
    """Autocast is off on these devices, and products of fp32 matrices are products of fp32 numbers."""
    with ExitStack() as stack:
        for device_type in device_types:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_exact_products())
        yield


@contextmanager
def _exact_products() -> Iterator[None]:
    """torch < 2.9 knows one setting; later ones one a backend too, and refuse to read the first where they disagree."""
    backends = _backends()
    before = [backend.fp32_precision for backend in backends]
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:
        common = "highest"
    if common != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        for backend in backends:
            if backend.fp32_precision in _REDUCED:
                backend.fp32_precision = "ieee"
        yield
    finally:
        if common != "highest":
            torch.set_float32_matmul_precision(common)
        for backend, value in zip(backends, before, strict=True):
            if backend.fp32_precision != value:
                backend.fp32_precision = "none"  # which inherits, as it did if this gives the same again
            if backend.fp32_precision != value:
                backend.fp32_precision = value


def _backends() -> list[Any]:
    if not hasattr(torch._C, "_get_fp32_precision_getter"):
        return []
    return [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[reportAttributeAccessIssue]
