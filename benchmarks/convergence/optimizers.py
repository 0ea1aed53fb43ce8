"""The optimizers that are compared: a table from a label to a class and its arguments.

A new variant is one line in `OURS`. Everything but what the line says is the class's default; the learning rate comes
from the trials.
"""

import dataclasses as dc
import importlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hina_kohya

from .task import Named, Workload, digest

DECAY = 1e-2


@dc.dataclass(frozen=True)
class Entry:
    """One line of the table.

    path  : module:Class
    scale : where its learning rates lie against AdamW's (LoRA+ moves one factor 16 times as far, so it starts lower)
    own_lr: its learning rates lie around `scale` itself, whatever the workload
    needs : the distribution that has it
    kinds : the only kinds of workload it is made for
    bf16  : whether it runs with bf16 parameters on a CPU
    matrices: it has to be shown 1x1 convolutions as matrices
    """

    path: str
    arguments: dict[str, Any] = dc.field(default_factory=dict)
    scale: float = 1.0
    own_lr: bool = False
    needs: str = "torch"
    kinds: tuple[str, ...] = ()
    bf16: bool = True
    matrices: bool = False
    ours: bool = False

    def build(self, named: Named, lr: float) -> torch.optim.Optimizer:
        module, _, name = self.path.partition(":")
        cls = getattr(importlib.import_module(module), name)
        return cls(named if self.ours else [param for _, param in named], lr=lr, **self.arguments)

    def centre(self, workload_lr: float) -> float:
        return self.scale if self.own_lr else self.scale * workload_lr

    def identity(self) -> str:
        """Changes when its runs no longer describe it. Our own code changes too often for that: see `code`."""
        release = "" if self.ours else version(self.needs)
        return digest(self.path, json.dumps(self.arguments, sort_keys=True, default=repr), release)

    def missing(self) -> str | None:
        """Why it cannot run here, if it cannot."""
        try:
            version(self.needs)
        except PackageNotFoundError:
            return f"{self.needs} is not installed"
        return None

    def unfit(self, workload: Workload) -> str | None:
        """Why it is left out of a workload, if it is."""
        if self.kinds and workload.kind not in self.kinds:
            return f"it is for {', '.join(self.kinds)} only"
        if workload.bf16 and not self.bf16:
            return "it cannot do bf16 on a CPU"
        return None


def ours(cls: str = "HinaAdamW", scale: float = 1.0, **arguments: Any) -> Entry:
    return Entry(f"hina_kohya:{cls}", arguments, scale, needs="hina-kohya", ours=True)


def off(scale: float = 1.0, **arguments: Any) -> Entry:
    """One technique on plain AdamW."""
    return ours(scale=scale, **{"use_muon": False, "use_cautious": False, **arguments})


_WD = {"weight_decay": DECAY}

BASELINES: dict[str, Entry] = {
    "torch-adamw": Entry("torch.optim:AdamW", _WD),
    # Its default leaves tensors below 4,096 elements, all of them here, in fp32: it would be torch-adamw.
    "bnb-adamw8bit": Entry("bitsandbytes.optim:AdamW8bit", {**_WD, "min_8bit_size": 1}, needs="bitsandbytes"),
    "came": Entry("came_pytorch:CAME", _WD, 0.08, needs="came-pytorch"),
    "adv-adamw": Entry("adv_optm:AdamW_adv", _WD, needs="adv_optm"),
    "adv-adopt": Entry("adv_optm:Adopt_adv", _WD, needs="adv_optm"),
    "adv-prodigy": Entry("adv_optm:Prodigy_adv", _WD, own_lr=True, needs="adv_optm"),
    "prodigy-plus": Entry("prodigyplus:ProdigyPlusScheduleFree", own_lr=True, needs="prodigy-plus-schedule-free"),
    "po-lora-rite": Entry(
        "pytorch_optimizer:LoRARite", needs="pytorch-optimizer", kinds=("lora",), bf16=False, matrices=True
    ),
    "po-adopt": Entry("pytorch_optimizer:ADOPT", {"weight_decouple": True, **_WD}, needs="pytorch-optimizer"),
}

OURS: dict[str, Entry] = {
    "hina-control": off(state="fp32", decay_roles="all"),  # is torch-adamw, bit for bit
    "hina-default": ours(scale=0.25),
    "hina-off": off(),
    "hina-cautious": off(use_cautious=True),
    "hina-alora4": off(use_alora=True, alora_ratio=4.0, scale=0.5),
    "hina-alora16": off(use_alora=True, scale=0.25),
    "hina-tam": off(use_tam=True),
    "hina-grams": off(use_grams=True),
    "hina-adopt": off(use_adopt_stability=True),
    "hina-agr": off(use_agr=True),
    "hina-orthograd": off(use_orthogonal_grad=True),
    "hina-spd": off(use_spd=True),
    "hina-lora-rite": off(use_lora_rite=True),
    "hina-allora-rows": off(use_allora_rows=True),
    "hina-kronecker-rms": off(use_kronecker_rms=True, scale=0.125),
}

OPTIMIZERS = {**BASELINES, **OURS}
REFERENCES = ("torch-adamw", "bnb-adamw8bit")  # what the savings are against


@cache
def code() -> str:
    """Digest of the code that makes our updates; a run made by another one is stale."""
    root = Path(hina_kohya.__file__).parent
    files = [f for part in ("numerics", "core", "techniques", "optim") for f in sorted((root / part).glob("*.py"))]
    return digest(*(file.read_bytes() for file in files))
