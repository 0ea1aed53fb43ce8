"""One run: what it is, and what decides it."""

import dataclasses as dc
import json
from functools import cache
from pathlib import Path

from benchmarks.convergence.task import digest

PROTOCOL = 1  # raise it when the meaning of a field, a schedule or a count changes
OURS = ("adlrns", "ours")  # methods, or measurements, that our code decides
_NETWORK = ("arguments", "balance", "execution", "files", "gains", "memory", "module", "network", "registration",
            "states")  # fmt: skip
_LAYER = ("capture", "complexity", "compressed", "compression", "grouped", "matrices", "module", "patches", "precision",
          "scheduling", "static")  # fmt: skip


@dc.dataclass(frozen=True)
class Run:
    """Everything the outcome depends on, besides the code.

    part   : layer, step, time (measurements), patches, adapter
    method : what is trained; "dense" and "none" are the ends of the scale
    data   : width of the patch network, or number of images ("all", "100", "24"), or size of a layer
    rank   : static or mean rank; 0 where one training serves all ranks
    steps  : epochs for patches, optimizer steps for adapters, rounds for measurements; a record's unit_ms is one's time
    """

    part: str
    method: str
    data: str = ""
    rank: int = 0
    steps: int = 0
    lr: float = 0.0
    seed: int = 0
    base: str = ""  # epochs of the dense network; digest of the diffusion model

    @property
    def key(self) -> str:
        return json.dumps([PROTOCOL, *dc.astuple(self)])

    @property
    def alone(self) -> bool:
        """It measures time, so nothing may run beside it."""
        return self.part in ("layer", "step", "time")

    def __str__(self) -> str:
        words = [self.part, self.method, self.data, f"rank {self.rank}" if self.rank else ""]
        words += [f"lr {self.lr:g}"] if self.lr else []
        return " ".join(word for word in [*words, f"seed {self.seed}"] if word)


@cache
def code(part: str) -> str:
    """Digest of the modules that decide a part; a run of ours that others made is stale."""
    import hina_kohya.adlrns  # noqa: PLC0415

    folder = Path(hina_kohya.adlrns.__file__).parent
    room, names = ("adapter", _NETWORK) if part in ("adapter", "step") else ("layer", _LAYER)
    files = [*(folder / room / f"{name}.py" for name in names), folder / "water_level.py"]
    return digest(*(file.read_bytes() for file in files))
