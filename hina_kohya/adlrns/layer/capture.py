"""What a model's layers see and pass back on calibration data, and the sums that compression needs of it."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .complexity import LightweightScorer
from .samples import over_samples, over_tensors, tensors

Side = Callable[[Any], Mapping[str, Any]]
Rows = tuple[Tensor, Tensor, Tensor]  # x [P, inner], g [P, out], cell [P]: one row for each position of each sample


def inputs(batch: Any) -> Tensor:
    """The model's input in a batch of a loader: x, or the first of (x, target, ...)."""
    x = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(x, Tensor):
        raise ValueError(f"a calibration batch is {type(x).__name__}; it must be a tensor, or begin with one")
    return x


def side_inputs(batch: Any, side: Side | None, device: torch.device) -> dict[str, Any]:
    """The model's other inputs in a batch, by their names in its forward; without ``side``, the third part of a batch
    that has a dictionary there."""
    if side is not None:
        others = side(batch)
    elif isinstance(batch, (tuple, list)) and len(batch) > 2 and isinstance(batch[2], Mapping):
        others = batch[2]
    else:
        return {}
    return {
        name: over_tensors(each, lambda t, _name: t.to(device), name, strict=False) for name, each in others.items()
    }


def passes(
    model: nn.Module,
    modules: dict[str, nn.Module],
    loader: Iterable[Any],
    loss: Callable[[Any, Any], Tensor] | None,
    scorer: LightweightScorer,
    side: Side | None = None,
    shared: Collection[str] = (),
) -> Iterator[tuple[str, Rows]]:
    """(name, rows) for each call of each module whose output has an effect. The same at every reading of the loader.

    g is the gradient of ``loss`` times the batch size; without a loss, of all outputs' product with a random normal
    vector, so that E[g g^T] is J^T J: squared errors of all outputs count the same.
    """
    device = next(model.parameters()).device
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:  # so that only what depends on the inputs has a gradient
        parameter.requires_grad_(False)
    try:
        for number, batch in enumerate(loader):
            start, leaves = inputs(batch).detach().to(device), []

            def begin(tensor: Tensor, leaves: list[Tensor] = leaves) -> Tensor:
                if not tensor.is_floating_point():
                    return tensor
                leaves.append(tensor.detach().clone().requires_grad_())
                return leaves[-1].clone()  # a model may write into its inputs

            cell = scorer.cell(start)
            with torch.enable_grad(), _recording(modules, len(start), leaves) as seen:
                others = over_samples(side_inputs(batch, side, device), len(start), begin, shared)
                y = model(begin(start), **others)
                outputs = [t for t in tensors(y) if t.requires_grad]
                if not outputs:
                    raise ValueError("the model must return a tensor that has a gradient by its input")
                if loss is None:
                    random = torch.Generator().manual_seed(number)
                    parts = [(t * torch.randn(t.shape, generator=random).to(t)).sum() for t in outputs]
                    value = torch.stack(parts).sum() if len(parts) > 1 else parts[0]
                else:
                    value = loss(y, batch[1]) * len(start)
                torch.autograd.grad(value, leaves, allow_unused=True)
            for name, x, g in seen:
                yield name, _rows(name, modules[name], x, g, cell, scorer.cells)
    finally:
        for parameter in trainable:
            parameter.requires_grad_()


@contextlib.contextmanager
def _recording(
    modules: dict[str, nn.Module], samples: int, leaves: list[Tensor]
) -> Iterator[list[tuple[str, Tensor, Tensor]]]:
    seen: list[tuple[str, Tensor, Tensor]] = []

    def hook(name: str) -> Callable[..., Any]:
        def record(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            x = args[0].detach()
            if not out.requires_grad and len(x) == samples:  # of whole numbers, such as tokens or timesteps
                leaves.append(out.detach().requires_grad_())
                out = leaves[-1].clone()
            if out.requires_grad:
                out.register_hook(lambda g: seen.append((name, x, g)))
            return out

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
