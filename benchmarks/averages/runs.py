"""One run: a training with all that can be made of its files and of averages kept beside it."""

import dataclasses as dc
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.campaign import store
from benchmarks.convergence.task import digest
from hina_kohya import loras
from hina_kohya.loras.averaging import soup
from hina_kohya.trainers import averages

from .settings import FILES, SETTINGS
from .trainings import Training

PROTOCOL = 1  # raise it when the meaning of a field or a setting changes
WIDTHS = (0.05, 0.1, 0.2)
LAST, BEST = "the last file", "the best single file"


@dc.dataclass(frozen=True)
class Run:
    """A setting with a seed; identity: of what the setting's name stands for."""

    setting: str
    seed: int
    identity: str

    alone = False

    @property
    def steps(self) -> int:
        return SETTINGS[self.setting].steps

    @property
    def key(self) -> str:
        return json.dumps([PROTOCOL, *dc.astuple(self)])

    def __str__(self) -> str:
        return f"{self.setting}, seed {self.seed}"


def run_of(setting: str, seed: int) -> Run:
    return Run(setting, seed, digest(repr(SETTINGS[setting])))


class Store(store.Store):
    kind, protocol = Run, PROTOCOL


@cache
def code() -> str:
    """Digest of the modules that decide what an average is."""
    files = (loras.averaging.__file__, loras.power_profile.__file__, averages.__file__)
    return digest(*(Path(file).read_bytes() for file in files))


def execute(run: Run, folder: Path) -> dict[str, Any]:
    """The finished record. losses: by arm, on the part that judges; ``folder`` keeps the language model."""
    began, setting = time.process_time(), SETTINGS[run.setting]
    torch.manual_seed(run.seed)
    with tempfile.TemporaryDirectory() as scratch:
        losses = arms(setting.training(run.seed, folder, Path(scratch)), setting.steps, Path(scratch))
    return {**dc.asdict(run), "losses": losses, "seconds": time.process_time() - began,
            "load": round(os.getloadavg()[0], 2), "code": code(), "protocol": PROTOCOL}  # fmt: skip


def arms(training: Training, steps: int, folder: Path) -> dict[str, float]:
    named = dict(training.named)
    kept = {f"ema={width:g}": averages.Average(named, training.optimizer, width) for width in WIDTHS}
    files = []
    for step in range(1, steps + 1):
        training.advance()
        if step % (steps // FILES) == 0:
            files.append(training.save(step))
    losses = {LAST: training.loss("judges")}
    for name, average in kept.items():
        average.take()
        with average.in_place():
            losses[name] = training.loss("judges")

    def chooses(file: Path) -> float:
        training.load(file)
        return training.loss("chooses")

    by_file = {file: chooses(file) for file in files}
    mixtures = {"soup": folder / "soup.safetensors", "soup --ema 0.15": folder / "profile.safetensors"}
    soup(files).write(mixtures["soup"])
    soup(files, ema=0.15).write(mixtures["soup --ema 0.15"])
    mixtures["greedy soup"] = greedy(by_file, chooses, folder / "greedy")
    mixtures[BEST] = min(files, key=by_file.__getitem__)
    for name, file in mixtures.items():
        training.load(file)
        losses[name] = training.loss("judges")
    return losses


def greedy(losses: Mapping[Path, float], loss: Callable[[Path], float], folder: Path) -> Path:
    """The best file, and each next one that makes the average no worse.

    Wortsman et al., arXiv:2203.05482, Algorithm 1, over files of one run.
    """
    first, *rest = sorted(losses, key=losses.__getitem__)
    members, best, lowest = [first], first, losses[first]
    for number, file in enumerate(rest):
        candidate = folder / f"{number}.safetensors"
        soup([*members, file], [1.0] * (len(members) + 1)).write(candidate)
        value = loss(candidate)
        if value <= lowest:
            members, best, lowest = [*members, file], candidate, value
    return best
