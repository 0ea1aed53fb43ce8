"""What `--network_args` may say to ADLRNS: names, bounds, defaults, and one ValueError for what is wrong."""

import ast
import dataclasses as dc
from collections.abc import Iterable, Mapping
from typing import Any

from hina_kohya.core.hyper import Interval, check, check_value, hyper
from hina_kohya.text import bytes_of, did_you_mean

_CHOICES = {"budget_unit": ("rank", "macs"), "mode": ("cap", "spend"), "granularity": ("sample", "batch")}
# What LyCORIS has and ADLRNS does not: a module's argument, and its name in network_args.
REFUSED = {"use_tucker": "use_tucker", "use_scalar": "use_scalar", "weight_decompose": "dora_wd"}
_WHOLE = ("r_min", "r_max", "bins", "refresh_every", "warmup", "probe_every")
# Of directions that depend on the timestep; with one bin they are chosen once, and there is nothing to set.
_OF_BINS = ("budget_unit", "mode", "timesteps", "refresh_every", "energy_penalty", "granularity")
PROBE_EVERY = 4  # with one bin
_UNMEASURED = {
    "ms": "an adapter's time does not follow its rank at LoRA's sizes, and there is no table of times",
    "mJ": "no counter of energy can be attributed to an adapter",
}


@dc.dataclass(frozen=True)
class Settings:
    """A budget is the bytes of the file, or a rank: `budget=4` is as many bytes as a LoRA of rank 4 has. With more than
    one bin it is a mean rank over timesteps."""

    r_min: int = hyper(1, "[0, inf)", doc="directions that every module keeps, the best; 0 with bins above 1 only")
    r_max: int | None = hyper(None, "[1, inf)", doc="most directions a module keeps; network_dim")
    budget: float | str | None = hyper(None, doc="20MB: of the file; 8: as a LoRA of rank 8 has; half of r_max")
    budget_unit: str = hyper("rank", doc="rank: every direction costs 1; macs: by its module's multiply-adds")
    mode: str = hyper("cap", doc="cap: keep what gains, up to the budget; spend: use the whole budget")
    bins: int = hyper(1, "[1, 256]", doc="1: ranks are chosen once; more: parts of the timesteps with their own")
    timesteps: float | None = hyper(
        None, "(0, inf)", doc="largest timestep the model is given; known for kohya's trainers"
    )
    refresh_every: int = hyper(50, "[1, inf)", doc="steps between two choices of directions")
    warmup: int = hyper(300, "[0, inf)", doc="first steps, with all directions; about a third of all")
    probe_every: int | None = hyper(None, "[1, inf)", doc="steps between two that measure; 4, with more bins 1")
    energy_penalty: float = hyper(0.0, "[0, inf)", doc="loss for which all directions' cost is worth saving")
    granularity: str = hyper("sample", doc="sample: each its own directions; batch: all those of any of its samples")

    def __post_init__(self) -> None:
        check(self)
        for name in _WHOLE:
            value = getattr(self, name)
            if isinstance(value, float):
                raise ValueError(f"{name} = {value!r} must be a whole number; write {name}={max(1, round(value))}")
        self._check_budget()
        for name, words in _CHOICES.items():
            value = getattr(self, name)
            if value not in words:
                why = f"; {_UNMEASURED[value]}" if name == "budget_unit" and value in _UNMEASURED else ""
                raise ValueError(f"{name} = {value!r} must be {' or '.join(words)}{why}")
        if self.bins == 1:
            self._check_one_bin()

    def _check_budget(self) -> None:
        if not isinstance(self.budget, str):
            check_value("budget", self.budget, None, Interval("(0, inf)"))
        elif not self.budget_bytes:
            raise ValueError(f"budget = {self.budget!r} is not a number and no size; write budget=8 or budget=20MB")
        elif self.bins > 1:
            raise ValueError(
                f"budget = {self.budget} is the size of a file, which with bins = {self.bins} has all directions; "
                "write bins=1, or a mean rank as budget=8"
            )

    def _check_one_bin(self) -> None:
        defaults = {field.name: field.default for field in dc.fields(self)}
        for name in _OF_BINS:
            if (value := getattr(self, name)) != defaults[name]:
                raise ValueError(f"{name} = {value!r} is for bins above 1; remove it, or write bins=6")
        if self.r_min < 1:
            raise ValueError("r_min = 0 is for bins above 1; write r_min=1: every module keeps a direction in the file")
        if self.warmup < 1:
            raise ValueError("warmup = 0 leaves nothing to choose ranks by; write warmup=300, a third of all steps")

    @property
    def budget_bytes(self) -> int | None:
        """Of the file, where it was said in bytes."""
        return bytes_of(self.budget) if isinstance(self.budget, str) else None


NAMES = tuple(field.name for field in dc.fields(Settings))


def take(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ours as values, the rest); network_args come as strings."""
    options = {name: _value(value) for name, value in kwargs.items() if name in NAMES and value is not None}
    return options, {name: value for name, value in kwargs.items() if name not in NAMES}


def rank(network_dim: Any, conv_dim: Any) -> int:
    """The largest of the network. Raises ValueError."""
    dims = []
    for name, value, default in (("network_dim", network_dim, 4), ("conv_dim", conv_dim, 0)):  # LyCORIS's defaults
        try:
            dims.append(int(value or default))
        except ValueError:
            raise ValueError(f"{name} = {value!r} must be a whole number; write {name}=8") from None
        if dims[-1] < (default > 0):
            raise ValueError(f"{name} = {value!r} must be at least 1; write {name}=8")
    return max(dims)


def settle(options: Mapping[str, Any], rank: int) -> Settings:
    """Settings with what depends on `network_dim` filled in. Raises ValueError with the value, its bound and a fix."""
    settings = Settings(**options)
    most = rank if settings.r_max is None else settings.r_max
    if most > rank:
        raise ValueError(f"r_max = {most} is above network_dim = {rank}; write r_max={rank} or raise network_dim")
    if settings.r_min > most:
        raise ValueError(f"r_min = {settings.r_min} is above r_max = {most}; write r_min={most} or less")
    probe_every = settings.probe_every or (PROBE_EVERY if settings.bins == 1 else 1)
    budget = max(most / 2, settings.r_min) if settings.budget is None else settings.budget
    if isinstance(budget, (int, float)) and not settings.r_min <= budget <= most:
        fix = "it is a rank; in bytes it is budget=20MB" if settings.bins == 1 else "it is a mean rank"
        raise ValueError(f"budget = {budget:g} is outside [r_min, r_max] = [{settings.r_min}, {most}]; {fix}")
    return dc.replace(settings, r_max=most, budget=budget, probe_every=probe_every)


def check_module(lora_name: str, lora_dim: int, kwargs: Mapping[str, Any]) -> None:
    """Raises ValueError for what LyCORIS hands one module, and no module of ours has."""
    if asked := [word for name, word in REFUSED.items() if kwargs.get(name)]:
        raise ValueError(f"{lora_name}: adlrns has no {asked[0]}; remove it from network_args")
    if network_wide := [name for name in kwargs if name in NAMES]:
        raise ValueError(f"{network_wide[0]} is one for all modules; write it in network_args, not in the preset")
    if lora_dim < 1:
        raise ValueError(f"{lora_name}: network_dim = {lora_dim} must be at least 1")


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first name that nobody reads, with those that are."""
    known = sorted({*known, *NAMES})
    for name in names:
        if name not in known:
            raise ValueError(
                f"network_args: unknown {name!r}; {did_you_mean(name, known)} ADLRNS reads {', '.join(NAMES)}"
            )


def _value(text: Any) -> Any:
    try:
        return ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError):
        return text
