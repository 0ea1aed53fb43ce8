"""One run: a training, or everything that is made of one finished LoRA."""

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

from . import rivals, world

_DECIDE = ("gathering", "level", "metric", "slots", "spectrum")
PROTOCOL = 1  # raise it when the meaning of a field or a schedule changes
PARTS = (2, 4, 8, 16)  # of the parent's rank
OURS, OURS_TRAINING = "metric and level", "metric and level, of training images"
ABLATIONS = {"metric, one rank": (True, True), "level, no metric": (False, False)}  # (metric, one rank)


@dc.dataclass(frozen=True)
class Run:
    """Everything the outcome depends on, besides the code.

    kind: `train` at a rank, or `resize` of the LoRA that was trained at a rank
    base: digest of the diffusion model
    """

    kind: str
    rank: int
    lr: float
    steps: int
    seed: int
    base: str

    alone = False

    @property
    def key(self) -> str:
        return json.dumps([PROTOCOL, *dc.astuple(self)])

    def __str__(self) -> str:
        return f"{self.kind} rank {self.rank} lr {self.lr:g} seed {self.seed}"

    def file(self, folder: Path) -> Path:
        """The LoRA."""
        return folder / f"{self.base}-r{self.rank}-lr{self.lr:g}-n{self.steps}-s{self.seed}.safetensors"


class Store(store.Store):
    kind, protocol = Run, PROTOCOL


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """The finished record; ``folder`` keeps LoRA files."""
    began = time.process_time()
    found = _train(run, folder) if run.kind == "train" else _resize(run, folder)
    seconds = time.process_time() - began
    own = {"code": code() if run.kind == "resize" else "", "protocol": PROTOCOL}
    return {**dc.asdict(run), **found, "seconds": seconds, "load": round(os.getloadavg()[0], 2), **own}


@cache
def code() -> str:
    """Digest of the modules that decide how a file is resized."""
    import hina_kohya.loras  # noqa: PLC0415

    folder = Path(hina_kohya.loras.__file__).parent
    return digest(*((folder / f"{name}.py").read_bytes() for name in _DECIDE))


def _train(run: Run, folder: Path) -> dict[str, Any]:
    file = run.file(folder)
    loss = world.train(run.rank, run.lr, run.steps, run.seed, file)
    return {"loss": loss if math.isfinite(loss) else None, "bytes": _bytes(file) if file.exists() else None}


def _resize(run: Run, folder: Path) -> dict[str, Any]:
    """results: one entry for each arm and size; without an adapter; seconds that calibration took."""
    parent = run.file(folder)
    scratch = folder / f"work-{os.getpid()}"
    scratch.mkdir(exist_ok=True)
    began, metrics = time.process_time(), {}
    for part in ("calibration", "training"):
        metrics[part] = scratch / f"{part}.metric.safetensors"
        world.calibrate(parent, part, run.seed, metrics[part])
    calibrated = (time.process_time() - began) / len(metrics)
    results: list[dict[str, Any]] = []

    def add(arm: str, part: int, file: Path, size: int) -> None:
        results.append({"arm": arm, "part": part, "loss": world.evaluated(file), "bytes": size})

    for part in PARTS:
        rank = run.rank // part
        limit = _limit(parent, rank)
        for arm, request in _requests(parent, rank, limit, metrics, scratch).items():
            resize(request)
            add(arm, part, request.output, request.output.stat().st_size)
    for (mode, part), file in _rivals(run, parent, scratch).items():
        add(mode, part, file, _bytes(file))
    for file in scratch.iterdir():
        file.unlink()
    scratch.rmdir()
    return {"results": results, "none": world.evaluated(None), "loss": world.evaluated(parent),
            "bytes": _bytes(parent), "calibration_seconds": calibrated,
            "real": rivals.checkout() is not None}  # fmt: skip


def _requests(parent: Path, rank: int, limit: int, metrics: dict[str, Path], scratch: Path) -> dict[str, Request]:
    sources, out = (Source(parent),), lambda name: scratch / f"{name}.safetensors"
    made = {
        OURS: Request(sources, out("ours"), size=limit, metric=metrics["calibration"]),
        OURS_TRAINING: Request(sources, out("training-images"), size=limit, metric=metrics["training"]),
    }
    for number, (arm, (metric, uniform)) in enumerate(ABLATIONS.items()):
        how: dict[str, Any] = {"rank": rank, "uniform": True} if uniform else {"size": limit}
        made[arm] = Request(sources, out(f"ablation{number}"), metric=metrics["calibration"] if metric else None, **how)
    return made


def _rivals(run: Run, parent: Path, scratch: Path) -> dict[tuple[str, int], Path]:
    """(mode, part) -> file."""
    found, files, calls = rivals.decomposed(parent), {}, []
    home = rivals.checkout()
    for part in PARTS:
        rank = run.rank // part
        one = rivals.size(found, dict.fromkeys(found, rank))
        for mode in rivals.MODES:
            file = files[mode, part] = scratch / f"{mode}-{part}.safetensors"
            ranks, parameter = rivals.cut(mode, found, rank, one)
            if home is not None and mode in rivals.SD_SCRIPTS:
                calls.append(rivals.words(mode, parent, file, run.rank, parameter))
            else:
                rivals.write(parent, found, ranks, file)
    if home is not None:
        rivals.run(home, calls)
    return files


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
