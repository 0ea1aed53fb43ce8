"""(a) One Linear, forward: dense, static rank, masked ranks, grouped ranks; interleaved, so a busy moment hits all."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import measure
from hina_kohya.adlrns.layer.grouped import CellContext, group
from hina_kohya.adlrns.layer.module import DynamicLowRankLayer

from .runs import Run

CELLS, WARMUP = 6, 3
SHARES = (8, 4, 2)  # r_max / mean rank


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """name -> CPU ms of one thread (median and quartile distance), and of the wall clock; a round calls each once.

    Of all rounds the quarter counts that took least as a whole: whoever shares a core or its cache only ever adds, and
    to small operations more than to large ones. On a machine that does nothing else both clocks agree; on another only
    the first means anything.
    """
    # A process that trains has freed blocks of this size, and reuses them; without this, fresh pages are timed.
    torch.empty(31 << 20, dtype=torch.uint8)
    device = torch.device("cpu")
    # Of each round: name -> (wall, CPU)
    seen = [{name: measure.timed(call, device) for name, call in calls.items()} for _ in range(WARMUP + rounds)]
    seen = sorted(seen[WARMUP:], key=lambda each: sum(cpu for _, cpu in each.values()))[: math.ceil(rounds / 4)]
    clocks = {name: list(zip(*(each[name] for each in seen), strict=True)) for name in calls}
    return {
        name: {**measure.spread(cpu), "wall": measure.spread(wall)["median"]} for name, (wall, cpu) in clocks.items()
    }


def a_round(times: dict[str, dict[str, float]]) -> float:
    return sum(each["median"] for each in times.values())


def layer_of(size: int, r_max: int, mean: int, x: Tensor) -> DynamicLowRankLayer:
    """Ranks of `mean` over equal cells that double from cell to cell: each is four times as strong as the one before.

    The ranks come from the water level, as in use; rounding leaves the mean a little below.
    """
    layer = DynamicLowRankLayer(size, size, r_max, r_min=1, cells=CELLS).eval()
    layer.calibrate(x)
    strength = 4.0 ** torch.arange(CELLS, dtype=torch.float64)
    gain = strength[:, None] / (1 + torch.arange(r_max, dtype=torch.float64)).square()
    layer.set_gains(gain, torch.ones(CELLS))
    layer.set_budget(100 * mean * layer.direction_macs / layer.dense_macs * (1 + 1e-9))
    return layer


class Masked:
    """The same function with all directions computed and those above a sample's rank set to zero."""

    def __init__(self, layer: DynamicLowRankLayer, cell: Tensor):
        self.layer, self.cell = layer, cell
        self.mask = (torch.arange(layer.r_max) < layer.ranks[cell][:, None]).float()

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        assert layer.shift is not None
        assert layer.bias is not None
        hidden = F.linear(x, layer.down) + layer.shift[self.cell]
        return F.linear(hidden * self.mask, layer.up) + layer.bias[self.cell]


def of_known_cells(layer: DynamicLowRankLayer, x: Tensor) -> Callable[[], Any]:
    """As `Masked`, a call that does not score the samples; it does sort them."""
    scored, layer.context = layer._score(x), CellContext()

    def call() -> Any:
        assert layer.context is not None
        layer.context.groups = group(*scored)
        return layer(x)

    return call


def inside(layer: DynamicLowRankLayer, x: Tensor) -> Callable[[], Any]:
    """A call as part of a `CompressedModel`, which has sorted the batch already."""
    groups = group(*layer._score(x))
    layer.context = CellContext()
    layer.context.groups = groups.sorted()
    rows = groups.sort(x)
    return lambda: layer(rows)


@torch.no_grad()
def measure_layer(run: Run, _: Path) -> dict[str, Any]:
    """run.data: "SIZExBATCH"; run.rank: r_max; run.steps: rounds."""
    size, batch = map(int, run.data.split("x"))
    torch.manual_seed(run.seed)
    x = torch.randn(batch, size) * torch.randn(batch, 1).exp()  # samples of all complexities
    dense = torch.nn.Linear(size, size)
    calls: dict[str, Callable[[], Any]] = {"dense": lambda: dense(x)}
    macs = {"dense": float(size * size)}
    for share in (*SHARES, 1):
        mean = run.rank // share
        up, down = torch.randn(size, mean), torch.randn(mean, size)
        calls[f"static {mean}"] = lambda up=up, down=down: F.linear(F.linear(x, down), up, dense.bias)
        macs[f"static {mean}"] = 2.0 * size * mean
    for share in SHARES:
        mean = run.rank // share
        alone, known, part = (layer_of(size, run.rank, mean, x) for _ in range(3))
        masked = Masked(alone, alone._cell(x))
        calls[f"masked {mean}"] = lambda masked=masked: masked(x)
        macs[f"masked {mean}"] = 2.0 * size * run.rank
        calls[f"grouped {mean}"] = lambda alone=alone: alone(x)
        calls[f"grouped {mean}, of known cells"] = of_known_cells(known, x)
        calls[f"grouped {mean}, in a model"] = inside(part, x)
        spent = float(alone.ranks[alone._cell(x)].double().mean()) * 2 * size
        for where in ("", ", of known cells", ", in a model"):
            macs[f"grouped {mean}{where}"] = spent
    times = interleaved(calls, run.steps)
    return {"rows": {name: {**times[name], "macs": macs[name]} for name in calls}, "unit_ms": a_round(times)}
