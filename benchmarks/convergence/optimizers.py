"""The optimizers that are compared: a table from a label to a class and its arguments.

A new variant is one line in `OURS`. Everything but what the line says is the class's default; the learning rate comes
from the trials.
"""

import ast
import dataclasses as dc
import importlib
import inspect
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import hina_kohya
from hina_kohya.core import registry

from .task import Named, Workload, digest

DECAY = 1e-2


@dc.dataclass(frozen=True)
class Entry:
    """One line of the table.

    path  : module:Class
    scale : where its learning rates lie against AdamW's (LoRA+ moves one factor 16 times as far, so it starts lower)
    own_lr: its learning rates lie around `scale` itself, whatever the workload
    untuned: that is the only one it gets
    needs : the distribution that has it
    kinds : the only kinds of workload it is made for
    bf16  : whether it runs with bf16 parameters on a CPU
    matrices: it has to be shown 1x1 convolutions as matrices
    muon_groups: it has to be told which group is for Muon: matrices, and not vectors
    """

    path: str
    arguments: dict[str, Any] = dc.field(default_factory=dict)
    scale: float = 1.0
    own_lr: bool = False
    untuned: bool = False
    needs: str = "torch"
    kinds: tuple[str, ...] = ()
    bf16: bool = True
    matrices: bool = False
    muon_groups: bool = False
    ours: bool = False

    def build(self, named: Named, lr: float) -> torch.optim.Optimizer:
        module, _, name = self.path.partition(":")
        cls = getattr(importlib.import_module(module), name)
        params: Any = named if self.ours else [param for _, param in named]
        if self.muon_groups:
            kinds = {matrices: [p for p in params if (p.dim() > 1) == matrices] for matrices in (True, False)}
            params = [{"params": some, "use_muon": kind, "lr": lr} for kind, some in kinds.items() if some]
        return cls(params, lr=lr, **self.arguments)

    def centre(self, workload_lr: float) -> float:
        return self.scale if self.own_lr else self.scale * workload_lr

    @property
    def steps_as_default(self) -> bool:
        """Ours, with the step size that `hina-default` has, so that their losses compare at equal learning rates."""
        return self.ours and self.arguments.get("use_lora_muon") is not False

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


def ours(cls: str = "HinaAdamW", scale: float = 1.0, kinds: tuple[str, ...] = (), **arguments: Any) -> Entry:
    return Entry(f"hina_kohya:{cls}", arguments, scale, needs="hina-kohya", kinds=kinds, ours=True)


def off(kinds: tuple[str, ...] = (), **arguments: Any) -> Entry:
    """One technique on plain AdamW."""
    return ours(kinds=kinds, **{"use_lora_muon": False, "use_cautious": False, **arguments})


_WD = {"weight_decay": DECAY}
ADAPTERS = ("lora", "lokr", "loha")

BASELINES: dict[str, Entry] = {
    "torch-adamw": Entry("torch.optim:AdamW", _WD),
    # Its default leaves tensors below 4,096 elements, all of them here, in fp32: it would be torch-adamw.
    "bnb-adamw8bit": Entry("bitsandbytes.optim:AdamW8bit", {**_WD, "min_8bit_size": 1}, needs="bitsandbytes"),
    "came": Entry("came_pytorch:CAME", _WD, 0.08, needs="came-pytorch"),
    "adv-adamw": Entry("adv_optm:AdamW_adv", _WD, needs="adv_optm"),
    "adv-adopt": Entry("adv_optm:Adopt_adv", _WD, needs="adv_optm"),
    "adv-prodigy": Entry("adv_optm:Prodigy_adv", _WD, own_lr=True, needs="adv_optm"),
    # Its README: lr 1 always; these three for diffusion models and their adapters.
    "prodigy": Entry(
        "prodigyopt:Prodigy",
        {**_WD, "use_bias_correction": True, "safeguard_warmup": True},
        own_lr=True,
        needs="prodigyopt",
    ),
    "prodigy-plus": Entry("prodigyplus:ProdigyPlusScheduleFree", own_lr=True, needs="prodigy-plus-schedule-free"),
    "po-lora-rite": Entry(
        "pytorch_optimizer:LoRARite", needs="pytorch-optimizer", kinds=("lora",), bf16=False, matrices=True
    ),
    # match_rms: steps of Adam's size, as in the paper's algorithm, so that its learning rates are Adam's.
    "po-normuon": Entry(
        "pytorch_optimizer:NorMuon",
        {**_WD, "update_scale": "match_rms"},
        needs="pytorch-optimizer",
        muon_groups=True,
    ),
    "po-adopt": Entry("pytorch_optimizer:ADOPT", {"weight_decouple": True, **_WD}, needs="pytorch-optimizer"),
}

OURS: dict[str, Entry] = {
    "hina-control": off(state="fp32", decay_roles="all"),  # is torch-adamw, bit for bit
    "hina-default": ours(),
    "hina-rank-free": ours(rank_free_lr=True),
    "hina-auto": dc.replace(ours("HinaAuto"), own_lr=True, untuned=True),
    # What the default is made of, and what else a step could start from.
    "hina-normuon": ours(use_muon=True),
    "normuon-bold": ours(use_muon=True, use_cautious=False),
    "hina-muon": ours(use_muon=True, use_normuon=False),
    "hina-cautious": off(use_cautious=True),
    "hina-grams": off(use_grams=True),
    "hina-adopt": off(use_adopt_stability=True, use_cautious=True),
    "hina-lora-rite": off(use_lora_rite=True, use_cautious=True, kinds=("lora",)),
    # One more technique on top of the default.
    "normuon-alora4": ours(use_muon=True, use_alora=True, alora_ratio=4.0, scale=0.5, kinds=ADAPTERS),
    "normuon-alora16": ours(use_muon=True, use_alora=True, scale=0.25, kinds=ADAPTERS),
    "normuon-kronecker-rms": ours(use_muon=True, use_kronecker_rms=True, scale=0.125, kinds=("lokr",)),
    "default-tam": ours(use_tam=True),
    "default-orthograd": ours(use_orthogonal_grad=True),
    "default-spd": ours(use_spd=True),
    # The other classes.
    "adaptive-default": ours("AdaptiveHinaAdamW"),
    "adaptive-more": ours("AdaptiveHinaAdamW", adaptation_strength=0.5),
    "camp-default": ours("AutomagicCameAMP8bit", scale=0.5),
    "camp-mask": ours("AutomagicCameAMP8bit", scale=0.3, use_lr_mask=True),
    "coptim-default": ours("COptim8bit"),
}

OPTIMIZERS = {**BASELINES, **OURS}
REFERENCES = ("torch-adamw", "bnb-adamw8bit")  # what the savings are against


@cache
def code(name: str) -> str:
    """Digest of what makes the updates under a label of ours: engine, class, techniques and their options.

    A run made by another one is stale. Comments and docstrings do not count.
    """
    optimizer: Any = OPTIMIZERS[name].build(
        [("lora_unet_a.lora_up.weight", torch.nn.Parameter(torch.zeros(2, 2)))], 1e-3
    )
    chain = {name: options for group in optimizer.param_groups for name, options in group["techniques"].items()}
    parts = [_engine(), _meaning(inspect.getsource(type(optimizer))), repr((chain, optimizer.settings.state))]
    return digest(*parts, *(_meaning(inspect.getsource(registry.technique(name))) for name in chain))


_NO_UPDATE = {"hyper", "registry", "report", "names", "checkpoint"}  # files that no update depends on


@cache
def _engine() -> str:
    root = Path(hina_kohya.__file__).parent
    files = [
        file for part in ("numerics", "parameters", "core", "discovery") for file in sorted((root / part).rglob("*.py"))
    ]
    files = [file for file in files if file.stem not in _NO_UPDATE]
    return digest(*(_meaning(file.read_text(encoding="utf-8")) for file in files))


def _meaning(source: str) -> str:
    """The source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(body, list) and isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            del body[0]
    return ast.dump(tree)
