"""Turn the Linear and convolution layers of a trained model into dynamic ones, without training.

A layer W is factored in the metric of what it does to the output: L L^T = E[x x^T] of its input, centred in each
cell, and M M^T = E[g g^T] of the gradient by its output. The singular vectors of M^T W L order the directions once for
all cells, so factors are shared and ranks are prefixes; cell k gains E_k[(g . u_i)^2 (v_i . x)^2] from direction i.
What a cell leaves out is replaced by its mean over the cell's calibration samples: no multiplication, and exact at
full rank. Each layer has the same mean rank and its own water level over the cells; one level for all layers was
worse, as gains do not add up along a chain.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .capture import Side, Statistics, inputs, passes, side_inputs
from .complexity import LightweightScorer
from .compressed import CompressedModel, Place
from .grouped import CellContext
from .module import DynamicLowRankLayer
from .samples import check_apart

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def compress(
    model: nn.Module,
    calibration_loader: Iterable[Any],
    budget: float,
    loss: Callable[[Any, Any], Tensor] | None = None,
    cells: int = 6,
    r_min: int = 1,
    exclude: Iterable[str] = (),
    ridge: float = 1e-6,
    side: Side | None = None,
    shared: Sequence[str] = (),
) -> CompressedModel:
    """A dynamic copy of ``model`` at ``budget`` percent of the MACs of all its Linear and convolution layers.

    Only the directions that the budget buys are kept: no later budget can buy more.

    calibration_loader : of x, or (x, target, ...); read three times, so a list or a DataLoader that does not shuffle
    loss    : of (output, target), a mean over the batch; without it errors of all outputs count the same
    cells   : complexity cells, quantiles of the variance of the model's input
    exclude : names of layers to leave as they are. They and what cannot be converted (`CompressedModel.dense` says
              why) cost their part of the budget
    ridge   : added to the metrics' diagonals, relative to their means
    side    : the model's other inputs in a batch, by their names in its forward: ``lambda batch: {"mask": batch[3]}``
        by default the third part of a batch that has a dictionary there
    shared  : names of those that are the same for all samples. All others have a row per sample, and are sorted with x

    x may be whole numbers, such as tokens, with ``cells=1``. Raises ValueError for a budget below that of r_min, with
    the least there is; and for a model that does not keep the samples of a batch apart.
    """
    loader: Any = calibration_loader
    if iter(loader) is loader:
        raise ValueError("calibration_loader can be read only once; give a list of batches or a DataLoader")
    model = copy.deepcopy(model).eval()
    found: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS)}
    excluded = set(exclude)
    if not found or excluded - set(found):
        raise ValueError(f"exclude = {sorted(excluded)}; the model's Linear and convolution layers are {sorted(found)}")
    dense = {name: "excluded" if name in excluded else _unsuitable(m) for name, m in found.items()}

    _call_layers(model)
    device = next(model.parameters()).device
    scorer = LightweightScorer(cells=cells).to(device)
    parts, unchecked = [], {name: m for name, m in found.items() if not dense[name]}
    for batch in loader:
        x = inputs(batch).detach().to(device)
        parts.append(scorer(x))
        if unchecked and len(x) > 1 and parts[-1].isfinite().all():
            check_apart(model, unchecked, x, side_inputs(batch, side, device), shared)
            unchecked = {}  # once is enough
    scores = torch.cat(parts)
    scorer.fit_scores(scores)
    samples = int(scores.isfinite().sum())

    stats = {name: Statistics(cells) for name in found}
    for name, rows in passes(model, found, loader, loss, scorer, side, shared):
        (stats[name].count if dense[name] else stats[name].add)(rows)
    for name in found:
        if not stats[name].rows.any():
            dense[name] = dense[name] or "its output has no effect on the model's"

    context = CellContext()
    layers = {
        name: _factored(m, stats[name], cells, r_min, ridge, context) for name, m in found.items() if not dense[name]
    }
    wide = {name: [p.detach().double() for p in (m.down, m.up, _of(m.shift))] for name, m in layers.items()}
    dynamic = {name: found[name] for name in layers}
    for name, rows in passes(model, dynamic, loader, loss, scorer, side, shared):
        stats[name].add_gains(rows, *wide[name])
    places = []
    for name, module in found.items():
        macs = module.weight.numel() * float(stats[name].rows.sum()) / samples
        places.append(Place(name, macs, dense[name]))
        if name in layers:
            rows = stats[name].rows
            layers[name].set_gains(stats[name].gains.cpu() / rows.clamp_min(1)[:, None], rows)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, layers[name])
    done = CompressedModel(model, scorer, context, places, shared).eval()
    done.set_budget(budget)
    for layer in layers.values():
        layer.trim(max(layer.plan()[:-1]))
    return done


def _call_layers(model: nn.Module) -> None:
    """Keep torch's transformer layers from their fast path, which reads the weights of layers and never calls them."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _unsuitable(module: Any) -> str:
    """Why a layer stays dense; "" if it need not."""
    if type(module) not in LAYERS:
        return f"{type(module).__name__} may compute something else than its base class"
    if getattr(module, "groups", 1) != 1:
        return f"groups = {module.groups}"
    if getattr(module, "padding_mode", "zeros") != "zeros":
        return f"padding_mode = {module.padding_mode}"
    weight = module.weight
    if weight.numel() <= len(weight) + weight[0].numel():
        return "one direction costs as much as the layer"
    return ""


def _factored(
    module: Any, stats: Statistics, cells: int, r_min: int, ridge: float, context: CellContext
) -> DynamicLowRankLayer:
    weight = module.weight.detach()
    down, up = factors(weight.flatten(1).double(), stats.input_metric(), stats.output_metric(), ridge)
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach()
    convolution = not isinstance(module, nn.Linear)
    layer = DynamicLowRankLayer(
        weight.shape[1],
        len(weight),
        r_max=len(down),
        r_min=r_min,
        cells=cells,
        context=context,
        device=weight.device,
        dtype=weight.dtype,
        **({name: getattr(module, name) for name in _GEOMETRY} if convolution else {}),
    )
    means = stats.means()
    with torch.no_grad():
        layer.down.copy_(down)
        layer.up.copy_(up)
        _of(layer.shift)[:-1] = -(means @ down.T)
        _of(layer.bias)[:] = bias.double()
        _of(layer.bias)[:-1] += means @ weight.flatten(1).double().T
    return layer


def _of(parameter: nn.Parameter | None) -> nn.Parameter:
    assert parameter is not None  # made with a bias
    return parameter


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")


def factors(weight: Tensor, input_metric: Tensor, output_metric: Tensor, ridge: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(down [R, in], up [out, R]) with up @ down = weight [out, in], float64: each prefix is the best there is of its
    rank for the mean of (g^T (W - W_r) x)^2 where E[x x^T] and E[g g^T] are the metrics and x, g independent."""
    left, right = _root(output_metric, ridge), _root(input_metric, ridge)
    u, s, vt = torch.linalg.svd(left.T @ weight @ right, full_matrices=False)
    up = torch.linalg.solve_triangular(left.T, u * s.sqrt(), upper=True)
    down = torch.linalg.solve_triangular(right.T, (s.sqrt()[:, None] * vt).T, upper=True).T
    tiny = torch.finfo(torch.float64).tiny
    even = (up.norm(dim=0).clamp_min(tiny) / down.norm(dim=1).clamp_min(tiny)).sqrt()  # half precision needs both alike
    return down * even[:, None], up / even


def _root(metric: Tensor, ridge: float) -> Tensor:
    if not metric.isfinite().all():
        raise ValueError("calibration statistics are not finite; check the model's outputs on the calibration data")
    size = float(metric.diagonal().mean()) or 1.0
    return torch.linalg.cholesky(metric + ridge * size * torch.eye(len(metric)).to(metric))
