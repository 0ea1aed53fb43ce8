"""One run: an arm at a learning rate in a world; described and stored as those of `benchmarks.convergence`."""

import dataclasses as dc
from pathlib import Path
from typing import Any

from benchmarks.convergence.optimizers import code
from benchmarks.convergence.runs import PROTOCOL, Run, train

from .arms import ARMS, entry_of, optimizer_of
from .worlds import WORLDS


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """The finished record. ``run.workload`` is a world, ``run.optimizer`` an arm; ``folder`` keeps the model."""
    arm, entry = ARMS[run.optimizer], entry_of(run.optimizer)
    world = WORLDS[run.workload]
    outcome = train(run, entry, lambda: world.task(folder, run.seed), arm.factor, arm.clip)
    return {
        **dc.asdict(run),
        **outcome,
        "code": code(optimizer_of(run.optimizer)) if entry.ours else "",
        "protocol": PROTOCOL,
    }
