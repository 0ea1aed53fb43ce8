"""One run: a training, a calibration, or all files of one size that are made of one finished LoRA."""

import dataclasses as dc
import json
import math
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.campaign import store
from benchmarks.convergence.task import digest
from hina_kohya.loras import writing
from hina_kohya.loras.resizing import Request, resize
from hina_kohya.loras.summing import Source

from . import rivals
from .worlds import WORLDS

_DECIDE = ("gathering", "level", "metric", "slots", "spectrum")
PROTOCOL = 2  # raise it when the meaning of a field or a schedule changes
PARTS = (2, 4, 8, 16)  # of the parent's rank
OURS, OURS_TRAINING = "metric and level", "metric and level, of training data"
ABLATIONS = {"metric, one rank": (True, True), "level, no metric": (False, False)}  # (metric, one rank)
CALIBRATIONS = ("calibration", "training")


@dc.dataclass(frozen=True)
class Run:
    """Everything the outcome depends on, besides the code.

    kind: `none`, no adapter; `train` at a rank; of that LoRA, `calibrate`, and `resize` to a part of its rank
    base: digest of the world's model and data
    """

    kind: str
    world: str
    rank: int
    lr: float
    steps: int
    seed: int
    base: str
    part: int = 0

    alone = False

    @property
    def key(self) -> str:
        return json.dumps([PROTOCOL, *dc.astuple(self)])

    def __str__(self) -> str:
        part = f" to 1/{self.part}" if self.part else ""
        return f"{self.world}: {self.kind} rank {self.rank}{part} lr {self.lr:g} seed {self.seed}"

    def _stem(self, folder: Path) -> str:
        lr = f"{self.lr:g}"
        return str(folder / f"{self.world}-{self.base}-r{self.rank}-lr{lr}-n{self.steps}-s{self.seed}")

    def file(self, folder: Path) -> Path:
        """The LoRA."""
        return Path(f"{self._stem(folder)}.safetensors")

    def metric(self, folder: Path, data: str) -> Path:
        return Path(f"{self._stem(folder)}.{data}.metric.safetensors")


class Store(store.Store):
    kind, protocol = Run, PROTOCOL


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """The finished record; ``folder`` keeps LoRA and metric files."""
    began = time.process_time()
    outcome = {"none": _none, "train": _train, "calibrate": _calibrate, "resize": _resize}[run.kind](run, folder)
    seconds = time.process_time() - began
    own = {"code": code() if run.kind in ("calibrate", "resize") else "", "protocol": PROTOCOL}
    return {**dc.asdict(run), **outcome, "seconds": seconds, "load": round(os.getloadavg()[0], 2), **own}


@cache
def code() -> str:
    """Digest of the modules that decide how a file is resized."""
    import hina_kohya.loras  # noqa: PLC0415

    folder = Path(hina_kohya.loras.__file__).parent
    return digest(*((folder / f"{name}.py").read_bytes() for name in _DECIDE))


def _none(run: Run, folder: Path) -> dict[str, Any]:
    return {"loss": WORLDS[run.world].evaluated(folder, None)}


def _train(run: Run, folder: Path) -> dict[str, Any]:
    file = run.file(folder)
    loss = WORLDS[run.world].train(folder, run.rank, run.lr, run.steps, run.seed, file)
    return {"loss": loss if math.isfinite(loss) else None, "bytes": _bytes(file) if file.exists() else None}


def _calibrate(run: Run, folder: Path) -> dict[str, Any]:
    """calibration_seconds: CPU time of one."""
    began = time.process_time()
    for data in CALIBRATIONS:
        WORLDS[run.world].calibrate(folder, run.file(folder), data, run.seed, run.metric(folder, data))
    return {"calibration_seconds": (time.process_time() - began) / len(CALIBRATIONS)}


def _resize(run: Run, folder: Path) -> dict[str, Any]:
    """results: one entry for each arm. Files of equal tensors are evaluated once."""
    parent, rank = run.file(folder), run.rank // run.part
    scratch = folder / f"work-{os.getpid()}"
    scratch.mkdir(exist_ok=True)
    files: dict[str, tuple[Path, int]] = {}
    for arm, request in _requests(run, folder, rank, scratch).items():
        resize(request)
        files[arm] = request.output, request.output.stat().st_size
    files |= {mode: (file, _bytes(file)) for mode, file in _rivals(run, parent, rank, scratch).items()}
    losses: dict[str, float] = {}
    results = []
    for arm, (file, size) in files.items():
        content = _content(file)
        if content not in losses:
            losses[content] = WORLDS[run.world].evaluated(folder, file)
        results.append({"arm": arm, "loss": losses[content], "bytes": size})
    for file in scratch.iterdir():
        file.unlink()
    scratch.rmdir()
    return {"results": results, "real": rivals.checkout() is not None}


def _requests(run: Run, folder: Path, rank: int, scratch: Path) -> dict[str, Request]:
    parent = run.file(folder)
    sources, limit, out = (Source(parent),), _limit(parent, rank), lambda name: scratch / f"{name}.safetensors"
    metric, of_training = (run.metric(folder, data) for data in CALIBRATIONS)
    requests = {
        OURS: Request(sources, out("ours"), size=limit, metric=metric),
        OURS_TRAINING: Request(sources, out("training-data"), size=limit, metric=of_training),
    }
    for number, (arm, (by_metric, uniform)) in enumerate(ABLATIONS.items()):
        how: dict[str, Any] = {"rank": rank, "uniform": True} if uniform else {"size": limit}
        requests[arm] = Request(sources, out(f"ablation{number}"), metric=metric if by_metric else None, **how)
    return requests


def _rivals(run: Run, parent: Path, rank: int, scratch: Path) -> dict[str, Path]:
    """mode -> file"""
    modules, files, calls = rivals.decomposed(parent), {}, []
    home = rivals.checkout()
    one = rivals.size(modules, dict.fromkeys(modules, rank))
    for mode in rivals.MODES:
        file = files[mode] = scratch / f"{mode}.safetensors"
        ranks, parameter = rivals.cut(mode, modules, rank, one)
        if home is not None and mode in rivals.SD_SCRIPTS:
            calls.append(rivals.words(mode, parent, file, run.rank, parameter))
        else:
            rivals.write(parent, modules, ranks, file)
    if home is not None:
        rivals.run(home, calls)
    return files


def _content(file: Path) -> str:
    """Digest of the tensors, and not of the metadata."""
    tensors = sorted(load_file(file).items())
    return digest(*(part for key, tensor in tensors for part in (key, str(tensor.shape), tensor.numpy().tobytes())))


def _limit(parent: Path, rank: int) -> int:
    """Bytes of a LoRA that is trained at `rank` on the same modules, and saved without metadata."""
    layout: dict[str, Any] = {}
    for key, tensor in load_file(parent).items():
        shape = list(tensor.shape)
        if key.endswith("lora_down.weight"):
            shape[0] = rank
        elif key.endswith("lora_up.weight"):
            shape[1] = rank
        layout[key] = (tuple(shape), tensor.dtype)
    return writing.size(layout, {})


def _bytes(file: Path) -> int:
    """Without metadata, which others' files have more or less of; ours count whole."""
    layout: writing.Layout = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in load_file(file).items()}
    return writing.size(layout, {})
