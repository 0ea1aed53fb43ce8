"""(b) Denoising patches of scikit-learn's sample images: PSNR against multiply-adds counted on the test halves.

All start at the same trained dense network and are fine-tuned alike: Adam, a cosine, the same epochs. Ranks are those
of a static network; ours gets the same share of the dense multiply-adds as its budget.
"""

import copy
import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hina_kohya.adlrns.layer import patches
from hina_kohya.adlrns.layer.compressed import CompressedModel
from hina_kohya.adlrns.layer.compression import compress
from hina_kohya.adlrns.layer.patches import Patches
from hina_kohya.adlrns.layer.static import static_ranks

from .layers import a_round, interleaved
from .rivals import Routed, Truncated
from .runs import Run

BATCH, DENSE_LR, CALIBRATION = 256, 2e-3, 4096
RANKS = {32: (4, 6), 128: (8, 12), 256: (6, 8, 12, 24), 1024: (16, 24)}  # of each width


@cache
def load(seed: int) -> tuple[Patches, Patches]:
    return patches.load(seed, BATCH)


def dense(folder: Path, width: int, seed: int, epochs: int) -> nn.Sequential:
    """The network that everything starts from; trained once and kept in ``folder``. Without epochs it is a new one."""
    model, file = patches.network(width, seed), folder / f"patches_{width}_{epochs}_{seed}.pt"
    if not epochs:
        return model
    if not file.is_file():
        for _ in patches.fit(model, load(seed)[0], epochs, DENSE_LR):
            pass
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        torch.save(model.state_dict(), unfinished)
        unfinished.replace(file)
    model.load_state_dict(torch.load(file, weights_only=True))
    return model


def weights_of(model: nn.Module) -> int:
    """Multiply-adds of a sample that goes through every matrix of a network of Linears."""
    return sum(p.numel() for p in model.parameters() if p.dim() > 1)


def share_of(model: nn.Sequential, rank: int) -> float:
    """Percent of the dense multiply-adds that a static rank costs."""
    layers = [m for m in model if isinstance(m, nn.Linear)]
    return 100 * rank * sum(m.in_features + m.out_features for m in layers) / weights_of(model)


def macs(model: nn.Module, data: Patches) -> float:
    """Of a sample, a mean over ``data``; `model` has just run on all of it."""
    if isinstance(model, CompressedModel):
        return model.spent / len(data.clean)
    return model.macs() if isinstance(model, (Truncated, Routed)) else float(weights_of(model))


def stored(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def work(run: Run, folder: Path) -> dict[str, Any]:
    """{"results": stage -> rank -> psnr, percent; "stored": parameters}; unit_ms is the CPU time of an epoch."""
    width, began = int(run.data), time.process_time()
    train, test = load(run.seed)
    model = dense(folder, width, run.seed, int(run.base))
    total, results = weights_of(model), {}

    def score(stage: str, model: nn.Module, rank: int) -> None:
        with torch.no_grad():
            found = patches.psnr(model, test)
        results.setdefault(stage, {})[str(rank)] = {"psnr": found, "percent": 100 * macs(model, test) / total}

    if run.method == "dense":
        taken = time.process_time() - began
        score("free", model, 0)
        return {"results": results, "stored": stored(model), "unit_ms": 1e3 * taken / run.steps}
    made = METHODS[run.method](model, train, run, score)
    torch.manual_seed(run.seed)
    began = time.process_time()
    for _ in patches.fit(made, train, run.steps, run.lr):
        pass
    taken = time.process_time() - began
    if isinstance(made, Routed):
        made.fit(train.noisy)
    for rank in RANKS[width] if run.method in NESTED else (run.rank,):
        if isinstance(made, Truncated):
            made.cut(rank)
        score("tuned", made, rank)
    return {"results": results, "stored": stored(made), "unit_ms": 1e3 * taken / run.steps}


def _static(model: nn.Sequential, train: Patches, run: Run, score: Callable[..., None]) -> nn.Module:
    calibration = list(train.noisy.split(CALIBRATION))
    score("free, SVD-LLM", static_ranks(model, calibration, run.rank, two_sided=False), run.rank)
    made = static_ranks(model, calibration, run.rank)
    score("free", made, run.rank)
    return made


def _dylora(model: nn.Sequential, train: Patches, run: Run, score: Callable[..., None]) -> nn.Module:
    calibration = list(train.noisy.split(CALIBRATION))
    return Truncated(static_ranks(model, calibration, max(RANKS[int(run.data)])), run.seed).train()


def _rana(model: nn.Sequential, train: Patches, run: Run, score: Callable[..., None]) -> nn.Module:
    calibration = list(train.noisy.split(CALIBRATION))
    most = min(patches.SIZE**2, int(run.data))
    made = Routed(static_ranks(model, calibration, most, two_sided=False), run.rank)
    made.fit(train.noisy)
    score("free", made, run.rank)
    return made


def _ours(model: Any, train: Patches, run: Run, score: Callable[..., None]) -> nn.Module:
    made = compress(model, list(train.noisy.split(CALIBRATION)), share_of(model, run.rank))
    score("free", made, run.rank)
    return made


METHODS: dict[str, Callable[..., nn.Module]] = {"static": _static, "dylora": _dylora, "rana": _rana, "ours": _ours}
NESTED = ("dylora",)  # one training serves all ranks


@torch.no_grad()
def measure_time(run: Run, folder: Path) -> dict[str, Any]:
    """Forward of the whole test set at once, interleaved; static and ours as they come, which is what tuning keeps."""
    model: Any = dense(folder, int(run.data), run.seed, int(run.base))
    train, test = load(run.seed)
    calibration = list(train.noisy.split(CALIBRATION))
    models = {"dense 0": copy.deepcopy(model)}
    for rank in RANKS[int(run.data)]:
        models[f"static {rank}"] = static_ranks(model, calibration, rank)
        models[f"ours {rank}"] = compress(model, calibration, share_of(model, rank))
    times = interleaved({name: lambda m=m: m(test.noisy) for name, m in models.items()}, run.steps)
    return {"rows": times, "unit_ms": a_round(times)}
