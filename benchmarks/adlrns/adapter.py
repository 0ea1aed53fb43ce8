"""(c) The frozen embedded diffusion model learns the digits 8 and 9: held-out loss at equal mean adapter MACs."""

import copy
import dataclasses as dc
import math
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.convergence.runs import CLIP, schedule
from benchmarks.convergence.task import generator

from .methods import METHODS, TIMESTEPS, Method, layers_of
from .runs import Run

BATCH, HELD_OUT, LEVELS = 8, (8, 9), 3  # LEVELS: noise levels an image
IMAGES = {"all": None, "100": 50, "24": 12}  # of each digit


@cache
def _base() -> Any:
    import transformers  # noqa: PLC0415
    from diffusers.utils import logging  # noqa: PLC0415

    from hina_kohya.demo.model import DigitModel  # noqa: PLC0415

    transformers.logging.set_verbosity_error()
    logging.set_verbosity_error()
    return DigitModel.load().freeze()


def fresh_model() -> Any:
    return dc.replace(_base(), unet=copy.deepcopy(_base().unet))


def training_data(name: str, seed: int) -> Any:
    """The first images of each digit; the seed decides order, noise and timesteps."""
    from hina_kohya.demo.data import DigitImages  # noqa: PLC0415

    return DigitImages(list(HELD_OUT), seed, IMAGES[name])


@cache
def held_out() -> Any:
    """The test part of both digits, each image at stratified noise levels with fixed noise."""
    from hina_kohya.demo.data import Batch, caption, load_digits  # noqa: PLC0415

    _, _, images, labels = map(torch.from_numpy, load_digits())
    rows = torch.isin(labels, torch.tensor(HELD_OUT)).nonzero().flatten().repeat(LEVELS)
    pixels, random = images[rows].unsqueeze(1), generator(0, 2)
    places = (torch.randperm(len(rows), generator=random) + torch.rand(len(rows), generator=random)) / len(rows)
    noise = torch.randn(pixels.shape, generator=random)
    return Batch(pixels, noise, (places * TIMESTEPS).long(), [caption(int(label)) for label in labels[rows]])


@cache
def positions() -> dict[str, int]:
    """Layer -> output positions of one sample."""
    model, found, handles = fresh_model(), {}, []
    for name, layer in layers_of(model.unet).items():

        def note(layer: Any, _: Any, out: Tensor, name: str = name) -> None:
            found[name] = out[0].numel() // layer.weight.shape[0]

        handles.append(layer.register_forward_hook(note))
    with torch.no_grad():
        model.loss(training_data("24", 0).batch(0, 2))
    return found


@cache
def rank_one() -> dict[str, int]:
    """Layer -> multiply-adds of one direction for one sample."""
    layers = layers_of(_base().unet)
    return {name: sum(layers[name].weight.shape[:2]) * count for name, count in positions().items()}


def macs(method: Method, rank: int, timesteps: Tensor) -> float:
    """Of a sample, a mean; adapters that are masked in training count as what acts of them."""
    one = rank_one()
    return sum(one[name] * float(kept.double().mean()) for name, kept in method.kept(rank, timesteps).items())


@torch.no_grad()
def evaluated(method: Method, rank: int) -> dict[str, float]:
    """rank: the measured mean multiply-adds, in those of a static LoRA of rank 1."""
    batch = held_out()
    method.evaluate(rank, batch.timesteps)
    loss = method.model.loss(batch).item()
    spent = macs(method, rank, batch.timesteps)
    return {"loss": loss, "rank": spent / sum(rank_one().values()), "macs": spent}


def work(run: Run, _: Path) -> dict[str, Any]:
    """{"results": rank -> loss, rank, macs; "stored"}. A run that diverges has no results."""
    torch.manual_seed(run.seed)
    method = METHODS[run.method](fresh_model(), run.rank, run.steps, run.seed)
    taken, fine = train(method, run) if run.steps else (0.0, True)
    results = {str(rank): evaluated(method, rank) for rank in method.ranks} if fine else {}
    if not all(math.isfinite(each["loss"]) for each in results.values()):
        results = {}
    return {"results": results, "stored": method.stored(), "unit_ms": 1e3 * taken / max(1, run.steps)}


def train(method: Method, run: Run) -> tuple[float, bool]:
    """(CPU seconds, whether it stayed finite)"""
    params, data = method.parameters(), training_data(run.data, run.seed)
    optimizer = torch.optim.AdamW(params, run.lr, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, run.steps))
    began = time.process_time()
    for step in range(run.steps):
        batch = data.batch(step, BATCH)
        method.before(step, batch.timesteps)
        loss = method.model.loss(batch)
        if not math.isfinite(loss.item()):
            return time.process_time() - began, False
        (loss + method.penalty()).backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        optimizer.step()
        method.after(step)
        optimizer.zero_grad()
        scheduler.step()
    return time.process_time() - began, True
