"""(a) What an adapter adds to a training step of one Linear: LyCORIS's LoRA, rebuilt and bypassed, and ours."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hina_kohya.adlrns.adapter.execution import Batch
from hina_kohya.adlrns.adapter.module import MAKING, AdlrnsModule
from hina_kohya.adlrns.adapter.states import States

from .layers import a_round, interleaved
from .runs import Run

SIZE, ROWS, SAMPLES, STATES = 1024, 256, 4, 4


def ours(base: nn.Linear, rank: int, mean: int | None, batch: tuple[int, ...]) -> AdlrnsModule:
    """Measuring. mean: None keeps all directions, as in the warm-up; else each state its own, in a basis of theirs."""
    states = States(STATES)
    token = MAKING.set(states)
    module = AdlrnsModule("lora_unet_a", base, 1.0, rank, rank).train()
    MAKING.reset(token)
    if mean is not None:
        kept = torch.stack([torch.arange(rank).roll(mean * state) < mean for state in range(STATES)])
        module.set_table(kept, torch.rand(STATES, rank), torch.ones(STATES, rank))
        module.set_basis(torch.linalg.qr(torch.randn(rank, rank))[0].expand(2, -1, -1).contiguous())
    states._batch, states.samples, states.probing, states.balancing = Batch(batch), SAMPLES, True, mean is None
    return module


def step_of(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward; the input needs a gradient, too, as in any layer but the first."""

    def step() -> None:
        rows = x.detach().requires_grad_()
        layer(rows).square().mean().backward()
        for parameter in layer.parameters():
            parameter.grad = None

    return step


def subjects(rank: int, size: int) -> dict[str, nn.Module]:
    """rank: R of every adapter; ours also with a quarter of its directions."""
    from lycoris.modules.locon import LoConModule  # noqa: PLC0415

    base = nn.Linear(size, size).requires_grad_(False)
    found: dict[str, nn.Module] = {"frozen layer": base}
    for name, bypass in (("LyCORIS LoRA, rebuild (its default)", False), ("LyCORIS LoRA, bypass", True)):
        found[name] = LoConModule("lora_unet_a", copy.deepcopy(base), 1.0, rank, rank, bypass_mode=bypass).train()
    quarter, mixed = rank // 4, tuple(range(SAMPLES))
    for name, mean, batch in (
        ("ours, all directions", None, mixed),
        (f"ours, mean rank {quarter}, one state", quarter, (1,) * SAMPLES),
        (f"ours, mean rank {quarter}, {STATES} states", quarter, mixed),
    ):
        found[name] = ours(copy.deepcopy(base), rank, mean, batch)
    return found


def measure_step(run: Run, _: Path) -> dict[str, Any]:
    """run.rank: R; run.steps: rounds."""
    torch.manual_seed(run.seed)
    size = int(run.data)
    x = torch.randn(SAMPLES, ROWS // SAMPLES, size)
    layers = subjects(run.rank, size)
    times = interleaved({name: step_of(layer, x) for name, layer in layers.items()}, run.steps)
    return {"rows": weighted(times), "unit_ms": a_round(times)}


def weighted(times: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What each adds to the frozen layer, and in parts of LyCORIS's bypass."""
    base, yardstick = (times[name]["median"] for name in ("frozen layer", "LyCORIS LoRA, bypass"))
    return {
        name: {**found, "overhead": found["median"] / base - 1, "to_bypass": found["median"] / yardstick}
        for name, found in times.items()
    }
