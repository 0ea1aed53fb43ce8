"""Which runs: every setting with seeds that nothing was tuned on."""

import dataclasses as dc
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.campaign import plan
from benchmarks.pretrained import model

from .runs import Run, Store, code, run_of
from .settings import DIGITS, SETTINGS, TEXT

SEEDS = (101, 102, 103, 104, 105)


@dc.dataclass(frozen=True)
class Mode:
    name: str
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float = 0.0


QUICK = Mode("quick", tuple(DIGITS)[-1:], SEEDS[:1], minutes=5.0)
FULL = Mode("full", tuple(SETTINGS), SEEDS)
MODES = {mode.name: mode for mode in (QUICK, FULL)}


class Plan(plan.Plan):
    """Seed by seed, so that all settings have as many."""

    def __init__(self, mode: Mode):
        reason = model.missing()
        self.mode = mode
        self.skipped = {name: reason for name in mode.settings if reason and name in TEXT}
        self.settings = [name for name in mode.settings if name not in self.skipped]

    def everything(self) -> list[Run]:
        return [run_of(name, seed) for seed in self.mode.seeds for name in self.settings]

    def known(self, store: Store) -> list[Run]:
        return self.everything()

    def place(self, run: Run) -> dict[str, Any]:
        return {"setting": run.setting}

    def code(self, run: Run) -> str:
        return code()

    def guess(self, run: Run) -> float:
        return 50.0 if run.setting in DIGITS else 300.0


def plan_of(options: Namespace, folder: Path) -> Plan:
    return Plan(MODES[options.mode])
