"""Time of a call, its spread, and where it was measured."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def machine(device: torch.device) -> str:
    """The GPU where there is one, the processor, and its cores."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}; {name}"
    return f"{name}, {os.cpu_count()} cores"


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """(wall, CPU) seconds of one call; a GPU is waited for before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and interquartile range in milliseconds."""
    values = [1e3 * value for value in values]
    if len(values) < 2:
        return {"median": values[0], "iqr": 0.0}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 3), "iqr": round(high - low, 3)}
