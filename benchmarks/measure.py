"""What the benchmarks share: where they run, counting, timing, memory, and writing results."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from hina_kohya.profile.clock import machine, spread, timed

__all__ = ["compact", "environment", "heading", "peak_bytes", "spread", "table", "timed", "write"]

RESULTS = Path(__file__).parent / "results"
WIDTH = 140  # columns of a line of JSON


def environment(threads: int, device: torch.device) -> dict[str, Any]:
    def git(*words: str) -> str:
        root = Path(__file__).parents[1]
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    return {
        "machine": machine(device),
        "load_average": round(os.getloadavg()[0], 2),
        "device": str(device),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "--porcelain") else ""),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """How far the allocator rises above its start while ``function`` runs: temporaries and what it returns.

    CPU: every allocation and release that torch's profiler sees, those inside kernels included; what numpy and
    bitsandbytes' own code take from malloc is not in it. CUDA: the caching allocator's own peak.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - start
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    level = peak = 0
    for _, delta in memory:
        level += delta
        peak = max(peak, level)
    return peak


def table(rows: Iterable[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table; ``columns`` maps keys to headings."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def heading(title: str, env: dict[str, Any], command: str) -> str:
    busy = env["load_average"] > 0.5 + env["threads"]
    note = (
        f"**Preliminary: the machine was busy (load {env['load_average']}).** Compare CPU times only.\n\n"
        if busy
        else ""
    )
    return (
        f"# {title}\n\n{note}`{command}` on {env['machine']}; {env['device']}, {env['threads']} threads, "
        f"torch {env['torch']}, commit {env['commit']}, {env['date']}.\n"
    )


def compact(value: Any, depth: int = 0, before: int = 0) -> str:
    """JSON that fills its lines, so that a table's row of numbers is a line or two and not one line per number.

    depth: of the value, one space each; before: columns that its line has taken by then
    """
    line = json.dumps(value)
    if before + len(line) < WIDTH or not isinstance(value, (dict, list, tuple)) or not value:
        return line
    rows = (
        [(f"{json.dumps(str(key))}: ", each) for key, each in value.items()]
        if isinstance(value, dict)
        else [("", each) for each in value]
    )
    indent = "\n" + " " * (depth + 1)
    text = open_line = ""
    for key, each in rows:
        part = key + compact(each, depth + 1, depth + 1 + len(key))
        if open_line and "\n" not in part and len(open_line) + len(part) + 2 < WIDTH:
            text, open_line = f"{text}, {part}", f"{open_line}, {part}"
        else:
            text = f"{text},{indent}{part}" if text else indent + part
            open_line = "" if "\n" in part else " " * (depth + 1) + part
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{text}\n{' ' * depth}{closing}"


def write(name: str, content: dict[str, Any], markdown: str, folder: Path = RESULTS) -> None:
    """NAME.json and NAME.md; the old ones stay until the new ones are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", compact(content)), (".md", markdown)):
        unfinished = folder / f".{name}{suffix}.{os.getpid()}"
        unfinished.write_text(text.rstrip() + "\n", encoding="utf-8")
        unfinished.replace(folder / f"{name}{suffix}")
        print(f"wrote {folder / (name + suffix)}")
