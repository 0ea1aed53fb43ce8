"""What `--network_args` may say to ADLRNS: names, bounds, defaults, and one ValueError for what is wrong."""

import ast
import dataclasses as dc
from collections.abc import Iterable, Mapping
from typing import Any

from hina_kohya.core.hyper import check, hyper
from hina_kohya.text import did_you_mean

_CHOICES = {"budget_unit": ("rank", "macs"), "mode": ("cap", "spend"), "granularity": ("sample", "batch")}
# What LyCORIS has and ADLRNS does not: a module's argument, and its name in network_args.
REFUSED = {"use_tucker": "use_tucker", "use_scalar": "use_scalar", "weight_decompose": "dora_wd"}
_WHOLE = ("r_min", "r_max", "bins", "refresh_every", "warmup", "probe_every")
_UNMEASURED = {
    "ms": "an adapter's time does not follow its rank at LoRA's sizes, and there is no table of times",
    "mJ": "no counter of energy can be attributed to an adapter",
}


@dc.dataclass(frozen=True)
class Settings:
    """A budget is in ranks: `budget=4` costs at most what a static LoRA of rank 4 costs, as a mean over timesteps."""

    r_min: int = hyper(1, "[0, inf)", doc="directions that every module keeps at every timestep, the best there")
    r_max: int | None = hyper(None, "[1, inf)", doc="most directions a module keeps at one timestep; network_dim")
    budget: float | None = hyper(None, "(0, inf)", doc="mean rank over timesteps and modules; half of r_max")
    budget_unit: str = hyper("rank", doc="rank: every direction costs 1; macs: by its module's multiply-adds")
    mode: str = hyper("cap", doc="cap: keep what gains, up to the budget; spend: use the whole budget")
    bins: int = hyper(6, "[1, 256]", doc="states that the timesteps are divided into")
    timesteps: float | None = hyper(
        None, "(0, inf)", doc="largest timestep the model is given; known for kohya's trainers"
    )
    refresh_every: int = hyper(50, "[1, inf)", doc="steps between two choices of directions")
    warmup: int = hyper(300, "[0, inf)", doc="first steps, with all directions; about a third of all")
    probe_every: int = hyper(1, "[1, inf)", doc="steps between two that measure all directions, kept or not")
    energy_penalty: float = hyper(0.0, "[0, inf)", doc="loss for which all directions' cost is worth saving")
    granularity: str = hyper("sample", doc="sample: each its own directions; batch: all those of any of its samples")

    def __post_init__(self) -> None:
        check(self)
        for name in _WHOLE:
            value = getattr(self, name)
            if isinstance(value, float):
                raise ValueError(f"{name} = {value!r} must be a whole number; write {name}={max(1, round(value))}")
        for name, words in _CHOICES.items():
            value = getattr(self, name)
            if value not in words:
                why = f"; {_UNMEASURED[value]}" if name == "budget_unit" and value in _UNMEASURED else ""
                raise ValueError(f"{name} = {value!r} must be {' or '.join(words)}{why}")


NAMES = tuple(field.name for field in dc.fields(Settings))


def take(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(ours as values, the rest); network_args come as strings."""
    given = {name: _value(value) for name, value in kwargs.items() if name in NAMES and value is not None}
    return given, {name: value for name, value in kwargs.items() if name not in NAMES}


def rank(network_dim: Any, conv_dim: Any) -> int:
    """The largest of the network. Raises ValueError."""
    found = []
    for name, value, default in (("network_dim", network_dim, 4), ("conv_dim", conv_dim, 0)):  # LyCORIS's defaults
        try:
            found.append(int(value or default))
        except ValueError:
            raise ValueError(f"{name} = {value!r} must be a whole number; write {name}=8") from None
        if found[-1] < (default > 0):
            raise ValueError(f"{name} = {value!r} must be at least 1; write {name}=8")
    return max(found)


def settle(given: Mapping[str, Any], rank: int) -> Settings:
    """Settings with what depends on `network_dim` filled in. Raises ValueError with the value, its bound and a fix."""
    settings = Settings(**given)
    most = rank if settings.r_max is None else settings.r_max
    if most > rank:
        raise ValueError(f"r_max = {most} is above network_dim = {rank}; write r_max={rank} or raise network_dim")
    if settings.r_min > most:
        raise ValueError(f"r_min = {settings.r_min} is above r_max = {most}; write r_min={most} or less")
    budget = max(most / 2, settings.r_min) if settings.budget is None else settings.budget
    if not settings.r_min <= budget <= most:
        raise ValueError(
            f"budget = {budget:g} is outside [r_min, r_max] = [{settings.r_min}, {most}]; it is a mean rank"
        )
    return dc.replace(settings, r_max=most, budget=budget)


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
