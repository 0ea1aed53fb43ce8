"""Smaller files of the same adapter, and sums of several: read, decompose, allocate, write.

Two passes over the modules, so that one at a time is in memory: singular values first, factors once ranks are known.
"""

import dataclasses as dc
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from hina_kohya.loras import level, metadata, names, peft_config, writing
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.metric import Metric
from hina_kohya.loras.reading import AdapterFile, refuse_same
from hina_kohya.loras.slots import Slot, slot
from hina_kohya.loras.summing import Module, Source, gather

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS_ONLY = "by the weights alone, no data was looked at"
Tick = Callable[[str, int], None]  # what is done now, of how many steps; once a step


@dc.dataclass(frozen=True)
class Request:
    """At most one of size (bytes of the file), rank and keep (share of the energy); none keeps everything.

    names : a style of `names.STYLES`, or None for the names of the files
    dtype : a key of DTYPES, or None for the widest of the files' factors
    metric: a file of `metric`, or None for the weights alone
    uniform: one rank for every module
    """

    sources: tuple[Source, ...]
    output: Path
    size: int | None = None
    rank: int | None = None
    keep: float | None = None
    names: str | None = None
    dtype: str | None = None
    metric: Path | None = None
    uniform: bool = False


@dc.dataclass(frozen=True)
class Result:
    """line: what was done; ranks: of the modules that are left; energy: the share of all s^2 that stays."""

    line: str
    ranks: tuple[int, ...]
    bytes: int
    bytes_before: int
    energy: float
    notes: tuple[str, ...]


def resize(request: Request, tick: Tick = lambda what, total: None) -> Result:
    """Write the file that is asked for. Raises AdapterError and OSError; then nothing is written."""
    check(request)
    sources = [source.path for source in request.sources]
    refuse_same([*sources, *([request.metric] if request.metric else [])], request.output)
    modules, model, files, notes = gather(request.sources)
    wanted, style = _style(request, files)
    if style == "peft":
        peft_config.check_places([module.place for module in modules])
        peft_config.check_folder(request.output, sources)
    dtype = DTYPES[request.dtype] if request.dtype else _widest(files)
    most = request.size or 100 * sum(file.size for file in files)
    metric = Metric(request.metric, request.sources) if request.metric else None
    slots = []
    for module in modules:
        module.check_sum()
        moments = metric.moments(module) if metric else None
        slots.append(slot(module, _name(module, wanted, model), style, dtype, moments, most))
        tick("singular values", len(modules))
    by = f"by {metric.samples} samples of data" if metric else WEIGHTS_ONLY
    plan = _Plan(request, slots, files, style, by, model.unet)
    ranks = plan.ranks()
    plan.write(ranks, tick)
    return plan.result(ranks, notes)


def check(request: Request) -> None:
    """Raises AdapterError for a request that can be told to fail without opening much; writes nothing."""
    refuse_same([source.path for source in request.sources], request.output)
    if request.rank is not None and request.rank < 1:
        raise AdapterError(f"--rank {request.rank} must be at least 1")
    if request.size is not None and request.size < 1:
        raise AdapterError(f"--size {request.size} must be above 0 bytes")
    if request.keep is not None and not 0 < request.keep <= 1:
        raise AdapterError(f"--keep {request.keep:g} must be above 0 and at most 1: the share of the energy that stays")


@dc.dataclass(frozen=True)
class _Plan:
    request: Request
    slots: list[Slot]
    files: list[AdapterFile]
    style: str
    by: str
    is_unet: bool

    @property
    def spectra(self) -> list[level.Spectrum]:
        return [slot.spectrum for slot in self.slots]

    @property
    def has_magnitudes(self) -> bool:
        return any(spectrum.least for spectrum in self.spectra)

    @property
    def is_uniform(self) -> bool:
        """diffusers' names have no alpha, and diffusers takes one for all: other ranks would have other strengths."""
        return self.request.uniform or self.style == "diffusers"

    def ranks(self) -> list[int]:
        request, spectra = self.request, self.spectra
        most = max(len(spectrum.values) for spectrum in spectra)
        if not most and not self.has_magnitudes and not any(slot.extras for slot in self.slots):
            raise AdapterError(f"{self.files[0].path}: every module is zero; there is nothing to keep")
        if self.is_uniform:
            return self._uniform(most)
        if request.size is not None:
            return self._within(request.size)
        if request.rank is not None:
            budget = sum(spectrum.bytes(min(request.rank, len(spectrum.values))) for spectrum in spectra)
            return level.allocate(spectra, budget)
        return level.keeping(spectra, 1.0 if request.keep is None else request.keep)

    def _uniform(self, most: int) -> list[int]:
        """One rank for all modules that are not zero."""
        request = self.request

        def padded(rank: int) -> list[int]:
            return [rank if len(spectrum.values) or spectrum.least else 0 for spectrum in self.spectra]

        ranks = list(range(1, min(most, request.rank or most) + 1))
        if request.size is not None:
            fitting = [rank for rank in ranks if self.size(padded(rank)) <= request.size]
            if not fitting:
                raise AdapterError(f"--size {request.size} bytes is below {self.size(padded(1))}, that of rank 1")
            return padded(fitting[-1])
        keep = 1.0 if request.keep is None or request.rank is not None else request.keep
        enough = [rank for rank in ranks if keep < 1 and level.energy(self.spectra, padded(rank)) >= keep]
        return padded(enough[0] if enough else ranks[-1])

    def _within(self, limit: int) -> list[int]:
        """The ranks of a file of at most `limit` bytes: costs of names are bounds, so the rest is spent again."""
        budget = limit - self.size([0] * len(self.slots))
        best: list[int] | None = None
        for _ in range(8):
            ranks = level.allocate(self.spectra, budget)
            slack = limit - self.size(ranks)
            if slack >= 0:
                if ranks == best:
                    break
                best = ranks
            budget += slack
        if best is None or not any(best):
            least = level.allocate(self.spectra, 0)
            one = min(spectrum.bytes(1) for spectrum in self.spectra if len(spectrum.values) > spectrum.least)
            raise AdapterError(f"--size {limit} bytes is below {self.size(least) + one}, the least that anything takes")
        return best

    def layout(self, ranks: Sequence[int]) -> writing.Layout:
        return {key: entry for slot, rank in zip(self.slots, ranks, strict=True)
                for key, entry in slot.layout(rank).items()}  # fmt: skip

    def metadata(self, ranks: Sequence[int]) -> dict[str, str]:
        kept = [rank for rank in ranks if rank] or [0]
        line = f"hina-kohya: {self.line(ranks)}"
        return metadata.corrected(self.files, kept, line, self.has_magnitudes, self.style == "kohya")

    def size(self, ranks: Sequence[int]) -> int:
        return writing.size(self.layout(ranks), self.metadata(ranks))

    def line(self, ranks: Sequence[int]) -> str:
        """What was done."""
        kept = [rank for rank in ranks if rank] or [0]
        sources = " + ".join(source.path.name + (f" x {source.weight:g}" if source.weight != 1 else "")
                             for source in self.request.sources)  # fmt: skip
        spread = f"rank {kept[0]}" if len(set(kept)) == 1 else f"ranks {min(kept)} to {max(kept)}"
        mean = sum(kept) / len(kept)
        share = level.energy(self.spectra, ranks)
        return f"{sources}: {len(kept)} modules, {spread}, mean {mean:.3g}, {share:.2%} of the energy, {self.by}"

    def write(self, ranks: Sequence[int], tick: Tick) -> None:
        layout = self.layout(ranks)
        owner = {key: (slot, rank) for slot, rank in zip(self.slots, ranks, strict=True) for key in slot.layout(rank)}

        def tensor(key: str) -> torch.Tensor:
            slot, rank = owner[key]
            return slot.tensor(key, rank)

        writing.write(self.request.output, layout, self.metadata(ranks), tensor, lambda: tick("writing", len(layout)))
        if self.style == "peft":
            named = {slot.name: rank for slot, rank in zip(self.slots, ranks, strict=True) if rank}
            peft_config.write(self.request.output, named, self.has_magnitudes)

    def _trips_diffusers(self, ranks: Sequence[int]) -> bool:
        """It reads the alphas of kohya's names for U-Nets alone, up to 0.32 at least (tests/loras/test_loaders.py)."""
        places = [slot.module.place for slot, rank in zip(self.slots, ranks, strict=True) if rank]
        return not self.is_unet or any(place is not None and place.part != names.UNET for place in places)

    def result(self, ranks: Sequence[int], notes: Sequence[str]) -> Result:
        notes = list(notes)
        if self.has_magnitudes:
            notes.append(
                "DoRA: the direction is resized, the magnitudes stay as trained, and the file stays a DoRA, which "
                "LyCORIS, ComfyUI and peft load and sd-scripts' networks.lora does not"
            )
        if self.style == "diffusers" and not self.request.uniform:
            notes.append("diffusers' names have no alpha, and diffusers takes one for all: every module has one rank")
        if (
            self.style in ("kohya", "comfy")
            and len({rank for rank in ranks if rank}) > 1
            and self._trips_diffusers(ranks)
        ):
            notes.append(
                "for diffusers make it with --uniform: it gives these modules of several ranks wrong strengths"
            )
        dropped = sum(bool(len(spectrum.values)) and not rank
                      for spectrum, rank in zip(self.spectra, ranks, strict=True))  # fmt: skip
        if dropped:
            notes.append(f"{dropped} modules are left out: none of their directions is worth its bytes")
        kept = tuple(rank for rank in ranks if rank)
        before = sum(file.size for file in self.files)
        after = self.request.output.stat().st_size
        grows = {"LoKr", "LoHa", "full"} & {term.algorithm for slot in self.slots for term in slot.module.terms}
        if grows and after > before:
            notes.append(
                "it is larger than what it was made of: a LoKr or LoHa has more directions than a LoRA of its size"
            )
        return Result(self.line(ranks), kept, after, before, level.energy(self.spectra, ranks), tuple(notes))


def _style(request: Request, files: Sequence[AdapterFile]) -> tuple[str | None, str]:
    """(the style that names are turned into, None where they stay; the style of the result)."""
    found = [names.styles_of([*file.modules]) for file in files]
    if request.names or len(set(found)) > 1:
        style = request.names or found[0] or "kohya"
        return style, style
    if found[0]:
        return None, found[0]
    dotted = any(key.endswith("lora_A.weight") for key in files[0].shapes)
    return None, "comfy" if dotted else "kohya"  # nobody's names, with the endings that they have


def _widest(files: Sequence[AdapterFile]) -> torch.dtype:
    result = files[0].dtype()
    for file in files[1:]:
        result = torch.promote_types(result, file.dtype())
    return result


def _name(module: Module, style: str | None, model: names.Model) -> str:
    """In the result."""
    if style is None or names.style_of(module.name) == style:
        return module.name
    place = module.place or names.place_of(module.name, model)  # the latter says why there is none
    return names.named(place, style, model)
