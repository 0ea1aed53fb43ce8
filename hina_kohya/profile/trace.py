"""Steps as a trace that chrome://tracing and ui.perfetto.dev open, with the techniques as spans."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hina_kohya import files
from hina_kohya.profile.owners import Spans, charged
from hina_kohya.profile.subjects import Subject
from hina_kohya.trainers.errors import UserError

STEPS = 2


def check(file: Path, source: Path | None) -> None:
    """Raises UserError for a name that cannot be written."""
    if not file.name.endswith((".json", ".json.gz")):
        raise UserError(f"--trace {file} must end with .json or .json.gz")
    if file.is_dir() or (source is not None and source.exists() and file.exists() and file.samefile(source)):
        raise UserError(f"--trace {file} is a folder or the file that is read; give another name")


def write(file: Path, subjects: Sequence[Subject]) -> None:
    """Replaces ``file`` when it is whole."""
    device = subjects[0].device
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")]
    with profile(activities=activities) as profiler:
        for subject in subjects:
            spans = Spans(record_function)
            with charged(subject.optimizer, spans) if subject.is_told_apart else nullcontext():
                for _ in range(STEPS):
                    with record_function(subject.name):
                        subject.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with files.atomic(file) as unfinished:
        profiler.export_chrome_trace(str(unfinished))
