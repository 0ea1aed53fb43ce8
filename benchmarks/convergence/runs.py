"""One run: what it is, what decides it, and doing it."""

import dataclasses as dc
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .optimizers import OPTIMIZERS, Entry, code
from .task import Named, Task
from .workloads import WORKLOADS

PROTOCOL = 1  # raise it when the schedule, the clipping or the meaning of a field changes
CLIP, WARMUP = 1.0, 0.05


@dc.dataclass(frozen=True)
class Run:
    """Everything the outcome depends on, besides the code."""

    workload: str
    optimizer: str
    lr: float
    steps: int
    seed: int
    identity: str  # of workload and optimizer

    @property
    def key(self) -> str:
        return json.dumps([PROTOCOL, *dc.astuple(self)])

    @property
    def alone(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"{self.workload} {self.optimizer} lr {self.lr:g}"


def warm_up(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / max(3, math.ceil(WARMUP * steps)))


def schedule(step: int, steps: int) -> float:
    """A linear warm-up, then a cosine to zero over the whole budget."""
    return warm_up(step, steps) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """Trains and returns the finished record. A run that diverges has no loss."""
    entry = OPTIMIZERS[run.optimizer]
    outcome = train(run, entry, lambda: WORKLOADS[run.workload].task(folder, run.seed))
    losses = outcome.pop("training_losses")
    return {
        **dc.asdict(run),
        **outcome,
        "training_loss": losses[-1] if losses else None,
        "code": code(run.optimizer) if entry.ours else "",
        "protocol": PROTOCOL,
    }


def train(
    run: Run,
    entry: Entry,
    make: Callable[[], Task],
    factor: Callable[[int, int], float] = schedule,
    clip: float = CLIP,
) -> dict[str, Any]:
    """What came of the training: losses, and CPU time. A run that diverges has no loss, nor training loss at its end.

    factor: (step, steps) -> what the learning rate is multiplied by; clip: norm of the gradients, inf for none
    """
    began = time.process_time()
    torch.manual_seed(run.seed)
    task = make()
    params = [param for _, param in task.named]
    shown = Matrices(task.named) if entry.matrices else None
    optimizer = entry.build(shown.named if shown else task.named, run.lr)
    _mode(optimizer, "train")
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, run.steps))
    torch.manual_seed(run.seed)  # for optimizers that draw from the global generator
    loop = time.process_time()
    stepping, done = 0.0, 0
    losses: list[float | None] = []
    for step in range(run.steps):
        training = task.backward(step)
        if not math.isfinite(training):
            losses.append(None)
            break
        losses.append(training)
        torch.nn.utils.clip_grad_norm_(params, clip)
        if shown:
            shown.show_gradients()
        start = time.process_time()
        optimizer.step()
        stepping += time.process_time() - start
        scheduler.step()
        done += 1
    spent = time.process_time() - loop
    _mode(optimizer, "eval")
    loss = task.held_out() if done == run.steps else math.nan
    return {
        "loss": loss if math.isfinite(loss) else None,
        "training_losses": losses,
        "step_ms": 1e3 * spent / max(1, done),
        "optimizer_ms": 1e3 * stepping / max(1, done),
        "seconds": time.process_time() - began,
    }


class Matrices:
    """1x1 convolutions as matrices that share their memory, for optimizers that cannot do more."""

    def __init__(self, named: Named):
        self._params = [param for _, param in named]
        self.named = [(name, p.detach().flatten(1).requires_grad_()) for name, p in named]

    def show_gradients(self) -> None:
        for param, (_, matrix) in zip(self._params, self.named, strict=True):
            matrix.grad = None if param.grad is None else param.grad.flatten(1)


def _mode(optimizer: torch.optim.Optimizer, name: str) -> None:
    """Schedule-free optimizers keep two sets of weights: one to train, one to look at."""
    switch = getattr(optimizer, name, None)
    if callable(switch):
        switch()
