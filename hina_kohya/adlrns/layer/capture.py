"""What a model's layers see and pass back on calibration data, and the sums that compression needs of it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .complexity import LightweightScorer

Rows = tuple[Tensor, Tensor, Tensor]  # x [P, inner], g [P, out], cell [P]: one row for each position of each sample


def inputs(batch: Any) -> Tensor:
    """The model's input in a batch of a loader: x, or the first of (x, target, ...)."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(x, Tensor):
        raise ValueError(f"a calibration batch is {type(x).__name__}; it must be a tensor, or begin with one")
    return x


def passes(
    model: nn.Module,
    modules: dict[str, nn.Module],
    loader: Iterable[Any],
    loss: Callable[[Tensor, Any], Tensor] | None,
    scorer: LightweightScorer,
) -> Iterator[tuple[str, Rows]]:
    """(name, rows) for each call of each module whose output has an effect. The same at every reading of the loader.

    g is the gradient of ``loss`` times the batch size; without a loss, of the outputs' product with a random normal
    vector, so that E[g g^T] is J^T J: squared errors of all outputs count the same.
    """
    device = next(model.parameters()).device
    for number, batch in enumerate(loader):
        start = inputs(batch).detach().to(device).clone().requires_grad_()
        cell = scorer.cell(start)
        with torch.enable_grad(), _recording(modules) as seen:
            y = model(start.clone())
            if not isinstance(y, Tensor) or not y.requires_grad:
                raise ValueError("the model must return one tensor that has a gradient by its input")
            if loss is None:
                random = torch.Generator().manual_seed(number)
                value = (y * torch.randn(y.shape, generator=random).to(y)).sum()
            else:
                value = loss(y, batch[1]) * len(start)
            torch.autograd.grad(value, start)
        for name, x, g in seen:
            yield name, _rows(name, modules[name], x, g, cell, scorer.cells)


@contextlib.contextmanager
def _recording(modules: dict[str, nn.Module]) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    seen: list[tuple[str, Tensor, Tensor]] = []

    def hook(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            x = args[0].detach()
            if out.requires_grad:
                out.register_hook(lambda g: seen.append((name, x, g)))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _rows(name: str, module: nn.Module, x: Tensor, g: Tensor, cell: Tensor, cells: int) -> Rows:
    if len(x) != len(cell):
        raise ValueError(
            f"{name} is given {tuple(x.shape)} for a batch of {len(cell)} samples; samples must stay along dimension "
            f"0, so exclude it: exclude=[{name!r}]"
        )
    if isinstance(module, nn.Linear):
        x, g = x.flatten(0, -2), g.flatten(0, -2)
    else:
        x = _patches(module, x).movedim(1, -1).flatten(0, -2) if module.groups == 1 else x.new_zeros(0)  # type: ignore[operator]
        g = g.movedim(1, -1).flatten(0, -2)
    cell = cell.repeat_interleave(len(g) // len(cell)) if len(cell) else cell
    inside = cell < cells  # the rest has no finite score and would spoil every sum
    if not inside.all():
        x, g, cell = x[inside] if len(x) else x, g[inside], cell[inside]
    return x.double(), g.double(), cell


def _patches(module: Any, x: Tensor) -> Tensor:
    """[N, in * k, ...]: what each output position of a convolution sees, by a convolution with the identity."""
    inner = module.weight[0].numel()
    eye = torch.eye(inner, dtype=x.dtype, device=x.device).view(inner, *module.weight.shape[1:])
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[x.dim() - 3]
    return convolve(x, eye, None, module.stride, module.padding, module.dilation)


class Statistics:
    """Sums over rows, in float64: rows [K], x [K, in], xx [in, in], gg [out, out]; then gains [K, R]."""

    def __init__(self, cells: int):
        self.rows = torch.zeros(cells, dtype=torch.int64)
        self.x = self.xx = self.gg = self.gains = torch.zeros(())

    def count(self, rows: Rows) -> None:
        self.rows = self.rows + torch.bincount(rows[2].cpu(), minlength=len(self.rows))

    def add(self, rows: Rows) -> None:
        self.count(rows)
        x, g, cell = rows
        self.x = self.x + x.new_zeros(len(self.rows), x.shape[1]).index_add_(0, cell, x)
        self.xx = self.xx + x.T @ x
        self.gg = self.gg + g.T @ g

    def add_gains(self, rows: Rows, down: Tensor, up: Tensor, shift: Tensor) -> None:
        x, g, cell = rows
        each = ((g @ up) * (x @ down.T + shift[cell])).square()
        self.gains = self.gains + each.new_zeros(len(self.rows), each.shape[1]).index_add_(0, cell, each)

    def means(self) -> Tensor:
        """[K, in]"""
        return self.x / self.rows.to(self.x.device).clamp_min(1)[:, None]

    def input_metric(self) -> Tensor:
        """E[(x - mean of its cell)(x - mean of its cell)^T]"""
        rows = self.rows.to(self.x.device)
        return (self.xx - self.x.T @ (self.x / rows.clamp_min(1)[:, None])) / rows.sum()

    def output_metric(self) -> Tensor:
        return self.gg / int(self.rows.sum())
