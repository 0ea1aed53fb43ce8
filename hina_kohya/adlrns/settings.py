"""The TOML configuration of a standalone training: sections model, train, scheduler, hardware. Imports no torch."""

import dataclasses as dc
from pathlib import Path
from typing import Any

import toml

from hina_kohya.core.hyper import check, hyper
from hina_kohya.text import did_you_mean


@dc.dataclass(frozen=True)
class ModelSettings:
    r_min: int = hyper(4, "[0, inf)", doc="fewest directions of a sample")
    r_max: int = hyper(64, "[1, inf)", doc="most directions of a sample")
    scorer_hidden: int = hyper(0, "[0, inf)", doc="width of the learned part of the score; 0: nothing to learn")
    num_gate_blocks: int = hyper(0, "[0, inf)", doc="blocks that learned gates open; 0: ranks from gains, no gates")


@dc.dataclass(frozen=True)
class TrainSettings:
    batch_size: int = hyper(256, "[1, inf)", doc="samples a step")
    epochs: int = hyper(5, "[0, inf)", doc="epochs, if train() is given none")
    lr: float = hyper(1e-3, "(0, inf)", doc="learning rate of Adam")
    energy_penalty_weight: float = hyper(0.0, "[0, inf)", doc="weight of E in loss + weight * E; needs gates")


@dc.dataclass(frozen=True)
class SchedulerSettings:
    type: str = "energy_aware"
    budget: float | None = hyper(None, "(0, inf)", doc="percent of the dense MACs; full rank if not given")
    energy_budget_mJ_per_sample: float | None = hyper(None, "(0, inf)", doc="measured energy; needs a counter")
    alpha: float = hyper(1.0, "[0, inf)", doc="weight in E of the operations, relative to the dense layer's")
    beta: float = hyper(0.0, "[0, inf)", doc="weight in E of the weights read, relative to the dense layer's")


@dc.dataclass(frozen=True)
class HardwareSettings:
    gpu_type: str = ""
    flops_per_mac: int = hyper(2, "[1, 2]", doc="how operations are counted")
    energy_per_flop: float | None = hyper(None, "(0, inf)", doc="J; for modelled_mJ only, no measurement")


@dc.dataclass(frozen=True)
class Settings:
    model: ModelSettings = dc.field(default_factory=ModelSettings)
    train: TrainSettings = dc.field(default_factory=TrainSettings)
    scheduler: SchedulerSettings = dc.field(default_factory=SchedulerSettings)
    hardware: HardwareSettings = dc.field(default_factory=HardwareSettings)

    def __post_init__(self) -> None:
        for section in dc.fields(self):
            check(getattr(self, section.name), f"{section.name}.")
        if self.model.r_min > self.model.r_max:
            raise ValueError(f"model.r_min = {self.model.r_min} is above model.r_max = {self.model.r_max}; lower it")
        if self.scheduler.type not in ("energy_aware", "linear", "adaptive"):
            kinds = "energy_aware, linear, adaptive"
            raise ValueError(f"scheduler.type = {self.scheduler.type!r} is unknown; use one of {kinds}")
        if self.train.energy_penalty_weight and not self.model.num_gate_blocks:
            raise ValueError(
                f"train.energy_penalty_weight = {self.train.energy_penalty_weight} has nothing to teach without gates; "
                "set model.num_gate_blocks, or limit the cost by scheduler.budget"
            )
        if self.model.scorer_hidden and not self.model.num_gate_blocks:
            raise ValueError(
                f"model.scorer_hidden = {self.model.scorer_hidden} learns through gates only; set model.num_gate_blocks"
            )

    @classmethod
    def of(cls, tables: dict[str, Any]) -> "Settings":
        """From nested dictionaries, as TOML or the old YAML gives them. Unknown names are errors."""
        sections = {field.name: field.default_factory for field in dc.fields(cls)}
        made = {}
        for name, values in tables.items():
            if name not in sections:
                raise ValueError(f"unknown section {name}; {did_you_mean(name, sections)}")
            kind: Any = sections[name]
            known = [field.name for field in dc.fields(kind)]
            if not isinstance(values, dict):
                raise ValueError(f"{name} = {values!r} must be a section: [{name}]")
            for key in values:
                if key not in known:
                    raise ValueError(f"unknown key {name}.{key}; {did_you_mean(key, known)}")
            made[name] = kind(**values)
        return cls(**made)

    @classmethod
    def read(cls, path: str | Path) -> "Settings":
        try:
            return cls.of(toml.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError as exc:
            raise ValueError(f"config {path} does not exist") from exc
        except toml.TomlDecodeError as exc:
            raise ValueError(f"config {path} is not valid TOML: {exc}") from exc
