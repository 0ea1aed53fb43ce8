"""What one step costs on the real parameter sets: launches, bytes per parameter, copies, waits; beside the others."""

import dataclasses as dc
import traceback
from typing import Any

import torch

import hina_kohya
from benchmarks import candidates, shapes
from benchmarks.fake_cuda.cases import states
from benchmarks.fake_cuda.device import CUDA, pretended
from hina_kohya.profile.recorder import Recorder

SETS = ("sdxl-lora-r8", "sdxl-lokr-f8-d8")
PEERS = ("torch-fused", "torch-foreach", "torch-loop", "bnb-adamw8bit", "po-adamw", "po-normuon", "adv-adamw", "came")
COLUMNS = {
    "set": "set",
    "name": "optimizer",
    "operations": "operations",
    "launches": "launches",
    "bytes": "bytes / parameter",
    "to_device": "copies to the device",
    "to_host": "to the host",
    "waits": "waits",
    "strays": "operations on the host",
    "error": "",
}


@dc.dataclass(frozen=True)
class Subject:
    name: str
    build: candidates.Build
    before: int = 1  # steps before the one that is counted


def subjects() -> list[Subject]:
    """The peers, then every class with every codec; a look for pairs apart, since most steps have none."""
    result = [Subject(name, candidates.CANDIDATES[name]) for name in PEERS]
    for cls in hina_kohya.__all__:
        if cls == "__version__":
            continue
        for state in states(cls):
            build = candidates.ours(cls, state=state)
            result.append(Subject(f"{cls}, {state}", build, before=4 if cls.startswith("Adaptive") else 1))
    result.append(Subject("AdaptiveHinaAdamW, 8bit, step with a look", candidates.ours("AdaptiveHinaAdamW"), before=3))
    result.append(Subject("HinaAdamW, 8bit, use_lora_muon=False", candidates.ours("HinaAdamW", use_lora_muon=False)))
    result.append(
        Subject("HinaAdamW, fp32, AdamW", candidates.ours("HinaAdamW", state="fp32", **candidates.OFF)),
    )
    return result


def cost(name: str, set_name: str) -> dict[str, Any]:
    """One row; what does not run on a pretended device is a row with the reason."""
    subject = next(each for each in subjects() if each.name == name)
    row: dict[str, Any] = {"set": set_name, "name": name}
    try:
        with pretended():
            named = shapes.make(set_name, CUDA)
            for _, param in named:
                param.grad = torch.empty_like(param, requires_grad=False)
            optimizer = subject.build(named)
            for _ in range(subject.before):
                optimizer.step()
            with Recorder(CUDA) as recorder:
                optimizer.step()
    except Exception as error:  # what another library cannot do here is a result
        place = traceback.extract_tb(error.__traceback__)[-1]
        return row | {"error": f"{type(error).__name__}: {error} ({place.name})".replace("\n", " ")[:200]}
    return row | {
        "operations": recorder.operations.total(),
        "launches": recorder.launches,
        "bytes": round(recorder.nbytes / sum(param.numel() for _, param in named), 1),
        "to_device": recorder.to_device,
        "to_host": recorder.to_host,
        "waits": recorder.waits,
        "strays": sum(fault.kind == "stray" for fault in recorder.faults),
        "top_operations": dict(recorder.operations.most_common(12)),
    }
