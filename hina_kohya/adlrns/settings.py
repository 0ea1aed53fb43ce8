"""The configuration of a standalone training, TOML or YAML: model, train, scheduler, hardware. Imports no torch."""

import dataclasses as dc
from pathlib import Path
from typing import Any

import toml

from hina_kohya.core.hyper import check_value, hyper
from hina_kohya.text import did_you_mean

NETWORKS = ("adlrns_resnet",)
SCHEDULERS = ("energy_aware", "linear", "adaptive")


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
    energy_budget_mJ_per_sample: float | None = hyper(
        None, "(0, inf)", doc="measured energy; where nothing measures it, that of hardware.energy_per_flop"
    )
    alpha: float = hyper(1.0, "[0, inf)", doc="weight in E of the operations, relative to the dense layer's")
    beta: float = hyper(0.0, "[0, inf)", doc="weight in E of the weights read, relative to the dense layer's")


@dc.dataclass(frozen=True)
class HardwareSettings:
    gpu_type: str = ""
    flops_per_mac: int = hyper(2, "[1, 2]", doc="how operations are counted")
    energy_per_flop: float | None = hyper(None, "(0, inf)", doc="mJ of an operation; for modelled energy only")
    gpu_cores: float | None = hyper(None, "[1, inf)", doc="each does one multiply-add a cycle; for modelled time only")
    base_frequency: float | None = hyper(None, "(0, inf)", doc="Hz, cycles per second; needs gpu_cores")
    memory_bandwidth: float | None = hyper(None, "(0, inf)", doc="bytes per second; for modelled time only")


_SECTIONS: dict[str, Any] = {
    "model": ModelSettings,
    "train": TrainSettings,
    "scheduler": SchedulerSettings,
    "hardware": HardwareSettings,
}


@dc.dataclass(frozen=True)
class Settings:
    """What a file says. network: its ``model.type``, "" for a network of your own."""

    model: ModelSettings = dc.field(default_factory=ModelSettings)
    train: TrainSettings = dc.field(default_factory=TrainSettings)
    scheduler: SchedulerSettings = dc.field(default_factory=SchedulerSettings)
    hardware: HardwareSettings = dc.field(default_factory=HardwareSettings)
    network: str = ""

    def __post_init__(self) -> None:
        _refuse(self._mistakes())

    def _mistakes(self) -> list[str]:
        mistakes = [line for name in _SECTIONS for line in _bad_values(name, getattr(self, name))]
        model, train, scheduler = self.model, self.train, self.scheduler
        if self.network and self.network not in NETWORKS:
            mistakes.append(
                f"model.type = {self.network!r} is unknown; write {' or '.join(NETWORKS)}, or leave it out and give "
                "ADLRNSTrainer a network of your own"
            )
        if scheduler.type not in SCHEDULERS:
            mistakes.append(f"scheduler.type = {scheduler.type!r} is unknown; use one of {', '.join(SCHEDULERS)}")
        if mistakes:
            return mistakes  # what follows compares values
        if model.r_min > model.r_max:
            mistakes.append(f"model.r_min = {model.r_min} is above model.r_max = {model.r_max}; lower it")
        if train.energy_penalty_weight and not model.num_gate_blocks:
            mistakes.append(
                f"train.energy_penalty_weight = {train.energy_penalty_weight} has nothing to teach without gates; "
                "set model.num_gate_blocks, or limit the cost by scheduler.budget"
            )
        if model.scorer_hidden and not model.num_gate_blocks:
            mistakes.append(
                f"model.scorer_hidden = {model.scorer_hidden} learns through gates only; set model.num_gate_blocks"
            )
        return mistakes

    @classmethod
    def of(cls, tables: dict[str, Any]) -> "Settings":
        """From nested dictionaries, as TOML or YAML gives them. A number may be a string, as PyYAML reads 1e-4.

        Raises one ValueError that has every unknown name and every bad value.
        """
        mistakes: list[str] = []
        values: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
        network = ""
        for name, table in tables.items():
            if name not in _SECTIONS:
                mistakes.append(f"unknown section {name}; {did_you_mean(str(name), _SECTIONS)}")
            elif table is not None and not isinstance(table, dict):  # None: in YAML, a section without keys
                mistakes.append(f"{name} = {table!r} must be a section: [{name}]")
            else:
                fields = {field.name: field for field in dc.fields(_SECTIONS[name])}
                for key, value in (table or {}).items():
                    if (name, key) == ("model", "type"):
                        network = value
                    elif key in fields:
                        values[name][key] = _number(fields[key], value)
                    else:
                        names = [*fields, "type"] if name == "model" else fields
                        mistakes.append(f"unknown key {name}.{key}; {did_you_mean(str(key), names)}")
        sections = {name: kind(**values[name]) for name, kind in _SECTIONS.items()}
        if mistakes:
            _refuse([*mistakes, *(line for name in _SECTIONS for line in _bad_values(name, sections[name]))])
        return cls(**sections, network=network)

    @classmethod
    def read(cls, path: str | Path) -> "Settings":
        """A TOML file, or a YAML file if its name ends in .yaml or .yml. Raises ValueError as `of` does."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError as exc:
            raise ValueError(f"config {path} does not exist") from exc
        if Path(path).suffix.lower() in (".yaml", ".yml"):
            return cls.of(_yaml(path, text))
        try:
            return cls.of(toml.loads(text))
        except toml.TomlDecodeError as exc:
            raise ValueError(f"config {path} is not valid TOML: {exc}") from exc


def _yaml(path: str | Path, text: str) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 (comes with accelerate; not for those who write TOML)

    try:
        tables = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ValueError(f"config {path} is not valid YAML: {exc}") from exc
    if tables is not None and not isinstance(tables, dict):
        raise ValueError(f"config {path} holds {type(tables).__name__}; it must have sections: {', '.join(_SECTIONS)}")
    return tables or {}


def _number(field: "dc.Field[Any]", value: Any) -> Any:
    """The number that a string is, where a number is expected; a whole one where it is counted. Else the value."""
    if field.metadata.get("interval") is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    is_count = isinstance(field.default, int)
    return int(value) if is_count and isinstance(value, float) and value.is_integer() else value


def _bad_values(section: str, owner: Any) -> list[str]:
    lines = []
    for field in dc.fields(owner):
        name, value = f"{section}.{field.name}", getattr(owner, field.name)
        if "interval" not in field.metadata:
            if not isinstance(value, str):
                lines.append(f"{name} = {value!r} is not a text; the default is {field.default!r}")
            continue
        try:
            check_value(name, value, field.default, field.metadata["interval"])
        except ValueError as exc:
            lines.append(str(exc))
            continue
        if isinstance(field.default, int) and not isinstance(value, int):
            lines.append(f"{name} = {value!r} must be a whole number; the default is {field.default}")
    return lines


def _refuse(mistakes: list[str]) -> None:
    if len(mistakes) == 1:
        raise ValueError(mistakes[0])
    if mistakes:
        raise ValueError(f"the configuration has {len(mistakes)} mistakes:\n- " + "\n- ".join(mistakes))
