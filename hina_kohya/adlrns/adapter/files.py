"""Files: an ordinary LoRA whose directions are sorted by gain, two small tensors a module beside it, and its exports.

`adlrns_kept` [K, R], 0 or 1, and `adlrns_stats` [2, K, R], gain and energy in units that only ratios matter of: both
survive bf16. A program that does not know them loads a LoRA of all directions.
"""

import dataclasses as dc
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open  # type: ignore[reportAttributeAccessIssue]
from safetensors.torch import save_file
from torch import Tensor

from hina_kohya.adlrns.water_level import allocate, nested
from hina_kohya.files import atomic

METADATA = "hina_adlrns"
VERSION = 1
KEPT, STATS = "adlrns_kept", "adlrns_stats"
_FACTORS = ("lora_up.weight", "lora_down.weight", "alpha", KEPT, STATS)
_ROUNDING = 1 + 1e-9


@dc.dataclass(frozen=True)
class Pair:
    """A module's tensors in a file. up: [out, R, ..], down: [R, ..], kept: [K, R] bool, gain and energy: [K, R]."""

    up: Tensor
    down: Tensor
    alpha: Tensor
    kept: Tensor
    gain: Tensor
    energy: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def ordered(self, order: Tensor) -> "Pair":
        """These directions, in this order; alpha as it was."""
        up, kept, gain, energy = (each[:, order] for each in (self.up, self.kept, self.gain, self.energy))
        return Pair(up, self.down[order], self.alpha, kept, gain, energy)

    def sorted(self) -> "Pair":
        """By mean gain over states, the best first; equal ones stay in order."""
        return self.ordered(self.gain.float().mean(0).argsort(descending=True, stable=True))

    def plain(self, chosen: Tensor) -> dict[str, Tensor]:
        """A plain LoRA of these directions; alpha follows the rank, so each is as strong as before."""
        alpha = self.alpha.double() * len(chosen) / self.rank
        up, down = self.up[:, chosen].contiguous(), self.down[chosen].contiguous()
        return {"lora_up.weight": up, "lora_down.weight": down, "alpha": alpha.to(self.alpha.dtype)}

    def tensors(self) -> dict[str, Tensor]:
        stats = torch.stack([self.gain, self.energy])
        each = (self.up.contiguous(), self.down.contiguous(), self.alpha, self.kept, stats)
        return dict(zip(_FACTORS, each, strict=True))


def pairs(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Pair]]:
    """Every ADLRNS module of a file. Raises ValueError for one that is not whole."""
    for key in tensors:
        name, _, last = key.rpartition(".")
        if last != KEPT:
            continue
        found = [tensors.get(f"{name}.{each}") for each in _FACTORS]
        missing = [each for each, tensor in zip(_FACTORS, found, strict=True) if tensor is None]
        if missing:
            raise ValueError(f"{name} has no {', '.join(missing)}; the file is not whole")
        up, down, alpha, kept, stats = (tensor for tensor in found if tensor is not None)
        if not up.shape[1] == down.shape[0] == kept.shape[1] or stats.shape != (2, *kept.shape):
            shapes = ", ".join(str(tuple(each.shape)) for each in (up, down, kept, stats))
            raise ValueError(f"{name}: the shapes of up, down, kept, stats do not belong together: {shapes}")
        yield name, Pair(up, down, alpha, kept.bool(), stats[0], stats[1])


def modules_of(tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Raises ValueError for a file that has none."""
    modules = dict(pairs(tensors))
    if not modules:
        raise ValueError(
            f"no {KEPT} in the file: it is a plain LoRA already, as ADLRNS of one bin makes it, or not ADLRNS's"
        )
    return modules


def by_gain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same network, every module's directions sorted by gain."""
    changed = {f"{name}.{key}": each for name, pair in pairs(tensors) for key, each in pair.sorted().tensors().items()}
    return {key: changed.get(key, tensor) for key, tensor in tensors.items()}


def of_rank(pair: Pair, rank: int) -> dict[str, Tensor]:
    """The directions of the most gain."""
    return pair.sorted().plain(torch.arange(min(rank, pair.rank)))


def mean_field(pair: Pair) -> dict[str, Tensor]:
    """Every direction that some state keeps, weighted by the share of its energy in states that keep it."""
    weight = share_of_energy(pair.kept, pair.energy)
    chosen = weight.nonzero().flatten()
    scaled = pair.up.double() * weight.view(1, -1, *[1] * (pair.up.dim() - 2))
    return dc.replace(pair, up=scaled.to(pair.up.dtype)).plain(chosen)


def share_of_energy(kept: Tensor, energy: Tensor) -> Tensor:
    """Of each direction's energy [K, R], how much is in states that keep it: [R], float64."""
    energy = energy.double().clamp(min=0)
    energy = torch.where(energy.sum(0) > 0, energy, 1.0)  # a direction without any: states count alike
    return (kept * energy).sum(0) / energy.sum(0)


def of_state(pair: Pair, state: int) -> dict[str, Tensor]:
    """The directions that act in one state; what has one state, as a text encoder, has it always."""
    return pair.plain(pair.kept[min(state, len(pair.kept) - 1)].nonzero().flatten())


def of_budget(modules: Mapping[str, Pair], budget: float) -> dict[str, int]:
    """The rank of each module by one water level on gains that are means over states; `budget` is the mean rank."""
    if not budget > 0:
        raise ValueError(f"budget = {budget:g} must be above 0; it is a mean rank")
    most = max(pair.rank for pair in modules.values())
    gain = torch.full((1, len(modules), most), -torch.inf, dtype=torch.float64)
    for layer, pair in enumerate(modules.values()):
        gain[0, layer, : pair.rank] = pair.sorted().gain.double().mean(0)
    cost = torch.full((len(modules),), 1 / len(modules), dtype=torch.float64)
    found = allocate(nested(gain), cost, torch.ones(1), budget * _ROUNDING)
    return dict(zip(modules, found.ranks[0].tolist(), strict=True))


def export(
    tensors: Mapping[str, Tensor], rank: int | None = None, budget: float | None = None, state: int | None = None
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """A plain LoRA: of one rank, of ranks within a budget, of a state, or, by default, the mean field; and its ranks.

    Modules that are left nothing are left out; tensors of other kinds of modules stay. Raises ValueError.
    """
    modules = modules_of(tensors)
    most = max(pair.rank for pair in modules.values())
    if rank is not None and not 1 <= rank <= most:
        raise ValueError(f"rank = {rank} is outside [1, {most}], the file's directions; give it as many or fewer")
    if budget is not None:
        ranks = of_budget(modules, budget)
        plain = {name: of_rank(pair, ranks[name]) for name, pair in modules.items()}
    elif rank is not None:
        plain = {name: of_rank(pair, rank) for name, pair in modules.items()}
    elif state is not None:
        plain = {name: of_state(pair, state) for name, pair in modules.items()}
    else:
        plain = {name: mean_field(pair) for name, pair in modules.items()}
    ranks = {name: each["lora_down.weight"].shape[0] for name, each in plain.items()}
    ours = {f"{name}.{key}" for name in modules for key in _FACTORS}
    made = {key: tensor for key, tensor in tensors.items() if key not in ours}
    made |= {f"{name}.{key}": tensor for name, each in plain.items() if ranks[name] for key, tensor in each.items()}
    return made, ranks


def read(source: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata). Raises ValueError."""
    if not source.is_file():
        raise ValueError(f"there is no file {source}")
    try:
        with safe_open(source, "pt") as file:  # type: ignore[reportGeneralTypeIssues]
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{source} is not a whole .safetensors file: {error}") from error


def refuse_same(source: Path, target: Path) -> None:
    """Raises ValueError where writing the target would lose the source, by whatever name or link."""
    if target.resolve() == source.resolve() or (target.exists() and target.samefile(source)):
        raise ValueError(f"{target} is the file that is read, and would be lost; give -o another name")


def export_file(source: Path, target: Path, rank: int | None = None, budget: float | None = None) -> dict[str, int]:
    """`export` of a .safetensors file into another. Raises ValueError and OSError."""
    tensors, metadata = read(source)
    refuse_same(source, target)
    lora, ranks = export(tensors, rank, budget)
    _write(target, lora, ranks, metadata)
    return ranks


@dc.dataclass(frozen=True)
class Bin:
    """The file of one bin of timesteps, and the part of the sampling that it is for, from 0 to 1."""

    path: Path
    start: float
    end: float
    ranks: dict[str, int]


def export_bins(source: Path, target: Path, shift: float = 1.0) -> list[Bin]:
    """A plain LoRA of each bin, in the order of sampling, as `<target>-1of6.safetensors`. Raises ValueError, OSError.

    shift: of the model's schedule, by which noise = shift t / (1 + (shift - 1) t) at a part 1 - t of the sampling.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shift = {shift:g} must be a number above 0; 1 is none, as SD and SDXL have it")
    tensors, metadata = read(source)
    states = max(len(pair.kept) for pair in modules_of(tensors).values())
    paths = [target.with_name(f"{target.stem}-{n + 1}of{states}{target.suffix}") for n in range(states)]
    for path in paths:
        refuse_same(source, path)
    parts = [1 - noise / (shift - (shift - 1) * noise) for noise in (n / states for n in range(states + 1))]
    bins = []
    for state, path in zip(reversed(range(states)), paths, strict=True):  # the last bin is the noisiest
        lora, ranks = export(tensors, state=state)
        bins.append(Bin(path, parts[state + 1], parts[state], ranks))
        _write(path, lora, ranks, metadata)
    return bins


def _write(target: Path, lora: dict[str, Tensor], ranks: Mapping[str, int], metadata: Mapping[str, str]) -> None:
    # Hashes of the old contents, and a network module whose file this no longer is.
    metadata = {key: value for key, value in metadata.items() if key != METADATA and not key.startswith("sshs_")}
    metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": str(max(ranks.values()))}
    metadata.pop("ss_network_args", None)
    with atomic(target) as unfinished:
        save_file(lora, unfinished, metadata)
