"""Doing one run."""

import dataclasses as dc
import os
import time
from pathlib import Path
from typing import Any

from .runs import OURS, PROTOCOL, Run, code


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """The finished record; ``folder`` keeps dense models."""
    began = time.process_time()
    found = _work(run.part)(run, folder)
    return {
        **dc.asdict(run),
        **found,
        "seconds": time.process_time() - began,
        "load": round(os.getloadavg()[0], 2),
        "code": code(run.part) if run.method in OURS else "",
        "protocol": PROTOCOL,
    }


def _work(part: str) -> Any:
    from . import adapter, layers, patches, steps  # noqa: PLC0415 (each imports what it measures)

    return {
        "layer": layers.measure_layer,
        "step": steps.measure_step,
        "time": patches.measure_time,
        "patches": patches.work,
        "adapter": adapter.work,
    }[part]
