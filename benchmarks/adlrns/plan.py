"""Which runs a benchmark is made of, and how long they take by measured steps.

Every method gets the same learning rates at every rank and on every set of data: trials on seeds that no result is of,
one for three of the results', of which the best one trains all seeds. The adapters' results are of seeds that nobody
had seen when ADLRNS and this plan were made.
"""

import dataclasses as dc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.campaign import plan as campaign
from benchmarks.campaign.store import Record
from benchmarks.convergence.plan import TRIAL_SEED

from . import methods, patches
from .runs import OURS, Run, code
from .store import Store

LR = {"patches": 1e-3, "adapter": 6e-3}
LR_OF = {"adalora": 2e-2}  # where the usual one is far off
RATES = {"patches": (1, 1 / 2), "adapter": (1, 2**-0.5, 1 / 2)}
FIRST_SEED = {"patches": 0, "adapter": 100}  # of the results; a patch network's is that of its dense one
Cell = tuple[str, str, str, int]  # part, method, data, rank
PARTS = ("layer", "step", "patches", "time", "adapter")


@dc.dataclass(frozen=True)
class Mode:
    """layers: sizes x batch, with r_max a quarter; widths: epochs of each dense network; images: steps of each

    rounds: of a measurement, a quarter of which counts
    trials: learning rates, at most
    more_seeds: by images, where methods differ by less than seeds do
    compared: methods by width or images, where not all of them
    """

    name: str
    layers: tuple[str, ...]
    rounds: int
    widths: dict[int, int]
    epochs: int
    images: dict[str, int]
    ranks: tuple[int, ...]
    trials: int
    seeds: int
    more_seeds: Mapping[str, int] = dc.field(default_factory=dict)
    parts: tuple[str, ...] = PARTS
    only: tuple[str, ...] = ()
    compared: Mapping[str, tuple[str, ...]] = dc.field(default_factory=dict)
    minutes: float = 0


QUICK = Mode("quick", ("1024x256",), 60, {128: 12}, 3, {"100": 60}, (4,), trials=1, seeds=1)
FULL = Mode(
    "full",
    ("256x256", "512x256", "1024x256", "2048x256", "1024x1024"),
    240,
    {256: 60, 1024: 30},
    10,
    {"all": 1200, "100": 240, "24": 120},
    methods.RANKS,
    trials=3,
    seeds=3,
    more_seeds={"all": 5, "100": 9, "24": 12},
    compared={"100": ("lora", "adlrns"), "24": ("lora", "adlrns"), "1024": ("static", "ours")},
)
MODES = {mode.name: mode for mode in (QUICK, FULL)}


def narrowed(
    mode: Mode, parts: Sequence[str] | None, only: Sequence[str] | None, data: Sequence[str] | None = None
) -> Mode:
    """A mode for some parts, methods, and widths or images. Raises ValueError for names that do not exist."""
    known, of_mode = sorted({*patches.METHODS, *methods.METHODS}), [*map(str, mode.widths), *mode.images]
    for names, there in ((parts, PARTS), (only, known), (data, of_mode)):
        campaign.there_is(names, there)
    widths = {width: epochs for width, epochs in mode.widths.items() if str(width) in (data or of_mode)}
    images = {name: steps for name, steps in mode.images.items() if name in (data or of_mode)}
    return dc.replace(mode, parts=tuple(parts or PARTS), only=tuple(only or ()), widths=widths, images=images)


class Plan(campaign.Plan):
    def __init__(self, mode: Mode, folder: Path):
        from benchmarks.convergence import diffusion  # noqa: PLC0415 (reads the base model)

        self.mode, self.skipped = mode, {}
        self.model = diffusion.identity(folder) if "adapter" in mode.parts else ""

    def cells(self) -> list[Cell]:
        """What gets a learning rate of its own. rank: 0 where one training serves all ranks."""
        found = []
        if "patches" in self.mode.parts:
            found += [("patches", method, str(width)) for width in self.mode.widths for method in patches.METHODS]
        if "adapter" in self.mode.parts:
            names = [name for name in methods.METHODS if name != "none"]
            found += [("adapter", method, data) for data in self.mode.images for method in names]
        mode = self.mode
        return [
            (part, method, data, rank)
            for part, method, data in found
            if (not mode.only or method in mode.only) and method in mode.compared.get(data, (method,))
            for rank in self._trained(part, method, data)
        ]

    def ranks(self, part: str, data: str) -> tuple[int, ...]:
        return patches.RANKS[int(data)] if part == "patches" else self.mode.ranks

    def _trained(self, part: str, method: str, data: str) -> tuple[int, ...]:
        """Ranks that runs are made for."""
        nested = methods.NESTED if part == "adapter" else patches.NESTED
        return (0,) if method in nested else self.ranks(part, data)

    def run(self, part: str, method: str, data: str, rank: int, lr: float, seed: int) -> Run:
        if part == "patches":
            return Run(part, method, data, rank, self.mode.epochs, lr, seed, str(self.mode.widths[int(data)]))
        return Run(part, method, data, rank, self.mode.images[data], lr, seed, self.model)

    def rates(self, cell: Cell) -> list[float]:
        part, method, _, _ = cell
        centre = LR_OF.get(method, LR[part])
        return [float(f"{centre * factor:.3g}") for factor in RATES[part][: self.mode.trials]]

    def trials(self, cell: Cell) -> list[Run]:
        """None where there is only one learning rate."""
        rates = self.rates(cell)
        seeds = range(TRIAL_SEED, TRIAL_SEED + max(1, self.seeds(cell) // 3))
        return [self.run(*cell, lr, seed) for lr in rates for seed in seeds] if len(rates) > 1 else []

    def chosen(self, cell: Cell, store: Store) -> float | None:
        """The learning rate that was best in the mean over its trials, once all are done."""
        rates = self.rates(cell)
        if len(rates) == 1:
            return rates[0]
        return campaign.best_rate(self.trials(cell), store, badness)

    def seeds(self, cell: Cell) -> int:
        return self.mode.more_seeds.get(cell[2], self.mode.seeds)

    def final(self, cell: Cell, lr: float) -> list[Run]:
        first = FIRST_SEED[cell[0]]
        return [self.run(*cell, lr, seed) for seed in range(first, first + self.seeds(cell))]

    # Runs that are known from the start.

    def measurements(self) -> list[Run]:
        mode, found = self.mode, []
        for data in mode.layers if "layer" in mode.parts else ():
            found.append(Run("layer", "ours", data, int(data.split("x")[0]) // 4, mode.rounds))
        if "step" in mode.parts:
            found.append(Run("step", "ours", "1024", 16, mode.rounds))
        for width, epochs in mode.widths.items() if "time" in mode.parts else ():
            found.append(Run("time", "ours", str(width), 0, max(3, mode.rounds // 4), base=str(epochs)))
        return found

    def references(self) -> list[Run]:
        mode, found = self.mode, []
        if "adapter" in mode.parts and mode.images:
            found.append(Run("adapter", "none", next(iter(mode.images)), base=self.model))
        if "patches" in mode.parts or "time" in mode.parts:
            seeds = [*range(mode.seeds), *([TRIAL_SEED] if mode.trials > 1 else [])]
            found += [
                Run("patches", "dense", str(width), 0, epochs, 0.0, seed, str(epochs))
                for width, epochs in mode.widths.items()
                for seed in seeds
            ]
        return found

    def known(self, store: Store) -> list[Run]:
        """All runs that can be named by now, in the order to do them; those that measure time come last."""
        runs = self.references()
        dense = all(store.get(run) for run in runs if run.part == "patches")
        for cell in self.cells():
            if cell[0] == "patches" and not dense:
                continue
            runs += self.trials(cell)
            lr = self.chosen(cell, store)
            runs += [] if lr is None else self.final(cell, lr)
        return runs + [run for run in self.measurements() if run.part != "time" or dense]

    def everything(self) -> list[Run]:
        """As many runs as there will be, with a learning rate that may be another."""
        runs = self.references() + self.measurements()
        for cell in self.cells():
            runs += self.trials(cell) + self.final(cell, self.rates(cell)[0])
        return runs

    def place(self, run: Run) -> dict[str, Any]:
        return {"part": run.part, "data": run.data}

    def code(self, run: Run) -> str | None:
        return code(run.part) if run.method in OURS else None

    def taste(self, run: Run) -> Run:
        """Small, and from a network that is not trained."""
        steps = {"adapter": 6, "patches": 1}.get(run.part, 2)
        rank, base = run.rank, {"patches": "0", "time": "0"}.get(run.part, run.base)
        if run.method == "dense":
            base = "1"
        if run.part in ("adapter", "patches") and rank:
            ranks = self.ranks(run.part, run.data)
            rank = ranks[len(ranks) // 2]
        return dc.replace(run, rank=rank, steps=0 if run.method == "none" else steps, lr=1e-4, seed=0, base=base)


def badness(record: Record) -> float:
    """Of a trial: held-out loss, or minus the PSNR; infinite for a run that diverged. The mean over its ranks."""
    if record["part"] == "patches":
        values = [-each["psnr"] for each in record["results"]["tuned"].values()]
    else:
        values = [each["loss"] for each in record["results"].values()]
    mean = sum(values) / len(values) if values else math.inf
    return mean if math.isfinite(mean) else math.inf
