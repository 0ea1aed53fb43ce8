"""What is in an adapter file: algorithms, ranks, norms and spectra, module by module and block by block."""

import dataclasses as dc
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hina_kohya.loras import forms, names, parts, spectrum
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.names import Place
from hina_kohya.loras.summing import Module, Source, gather

MOST_ROWS = 8  # of the numbered blocks of one kind; a screen has room for those of three models


@dc.dataclass(frozen=True)
class ModuleSummary:
    """rank: that of the training; values: [K] singular values of the change of the weight, scale included."""

    name: str
    block: str
    algorithm: str
    rank: int
    values: Tensor

    @property
    def energy(self) -> float:
        return float(self.values.square().sum())

    def rank_for(self, share: float) -> int:
        """The directions that keep this share of the module's energy."""
        if not len(self.values):
            return 0
        return min(int((self.values.square().cumsum(0) < share * self.energy).sum()) + 1, len(self.values))


@dc.dataclass(frozen=True)
class FileSummary:
    path: Path
    bytes: int
    dtypes: tuple[str, ...]
    style: str
    modules: tuple[ModuleSummary, ...]
    metadata: dict[str, str]
    notes: tuple[str, ...]

    def blocks(self) -> dict[str, list[ModuleSummary]]:
        """In the order of their names."""
        found: dict[str, list[ModuleSummary]] = {}
        for module in self.modules:
            found.setdefault(module.block, []).append(module)
        return found


def summarise(path: Path, tick: Callable[[str, int], object] = lambda what, total: None) -> FileSummary:
    """Raises AdapterError."""
    modules, _, files, notes = gather([Source(path)])
    blocks = blocks_of(modules)
    found = []
    for module in modules:
        tick(path.name, len(modules))
        form = module.form()
        if form is None:
            continue
        term = module.terms[0]
        shapes = {part: term.file.shapes[key] for part, key in term.file.modules[term.module].items()}
        rank = forms.rank(shapes) if forms.has_scale(shapes) else min(form.shape)
        values = spectrum.values(form)
        found.append(ModuleSummary(module.name, blocks[module.name], term.algorithm, rank, values))
    file = files[0]
    dtypes = {file.dtypes[key] for named in file.modules.values() for part, key in named.items() if part != parts.ALPHA}
    style = names.styles_of([*file.modules])
    order = {name: number for number, name in enumerate(blocks)}
    found.sort(key=lambda module: order[module.name])
    if any(module.is_dora for module in modules):
        notes.append(
            "DoRA: norms and spectra are of the directions; its magnitudes act on the base model and are not looked at"
        )
    return FileSummary(path, file.size, tuple(sorted(dtypes)), style, tuple(found), file.metadata, tuple(notes))


def blocks_of(modules: Sequence[Module]) -> dict[str, str]:
    """module name -> the block it is shown in, in the order of blocks; neighbours together where there are many."""
    return _blocks({module.name: module.place for module in modules})


def blocks_of_names(module_names: Sequence[str]) -> dict[str, str]:
    """The same where there is no file: of the modules of a network that is trained."""
    model = names.model_of([*module_names], {})
    places: dict[str, Place | None] = {}
    for name in module_names:
        try:
            places[name] = names.place_of(name, model)
        except AdapterError:
            places[name] = None  # a name of nobody known is a block by its own words
    return _blocks(places)


def _blocks(places: Mapping[str, Place | None]) -> dict[str, str]:
    heads = {name: _head(place, name) for name, place in places.items()}
    numbers: dict[str, set[int]] = {}
    for head, number in heads.values():
        numbers.setdefault(head, set()).add(number)
    blocks = {}
    for name in sorted(heads, key=lambda name: heads[name]):
        head, number = heads[name]
        width = math.ceil(len(numbers[head]) / MOST_ROWS)
        first = number - number % width
        last = min(first + width - 1, max(numbers[head]))
        shown = "" if number < 0 else f" {first}" if first == last else f" {first} to {last}"
        blocks[name] = f"{head}{shown}"
    return blocks


def _head(place: Place | None, name: str) -> tuple[str, int]:
    """Words before the first number, and the number; -1 where there is none."""
    text = name if place is None else f"{place.part} {place.path}"
    dot = r"[._]" if place is None else r"\."
    match = re.match(rf"(.*?){dot}(\d+)(?:{dot}|$)", text)
    if match is None:
        return (text if place is None else f"{place.part} {place.path.partition('.')[0]}"), -1
    head = match[1].replace("text_model.encoder.layers", "layers")
    return (head.partition(".")[0], -1) if "mid_block" in head else (head, int(match[2]))


def training(metadata: dict[str, str]) -> list[tuple[str, str]]:
    """(what, how) of what a file says that it was trained with, as far as it does."""
    get = lambda key: value if (value := metadata.get(key, "")) not in ("", "None") else ""  # noqa: E731
    network = " ".join(filter(None, (get("ss_network_module"), _word("dim", get("ss_network_dim")),
                                     _word("alpha", get("ss_network_alpha")), get("ss_network_args"))))  # fmt: skip
    rates = ", ".join(filter(None, (_word("lr", get("ss_learning_rate")), _word("unet", get("ss_unet_lr")),
                                    _word("text encoder", get("ss_text_encoder_lr")),
                                    get("ss_lr_scheduler"))))  # fmt: skip
    length = ", ".join(filter(None, (_word("steps", get("ss_steps")), _word("epochs", get("ss_epoch")),
                                     _word("images", get("ss_num_train_images")),
                                     _word("batch", get("ss_total_batch_size")),
                                     _word("resolution", get("ss_resolution")))))  # fmt: skip
    base = " ".join(
        filter(None, (get("ss_sd_model_name"), get("ss_base_model_version") or get("modelspec.architecture")))
    )
    rows = [
        ("base model", base),
        ("network", network),
        ("optimizer", get("ss_optimizer")),
        ("rates", rates),
        ("length", length),
        ("tags", _tags(get("ss_tag_frequency"))),
        ("comment", get("ss_training_comment")),
    ]
    return [(what, how) for what, how in rows if how]


def _word(name: str, value: str) -> str:
    return f"{name} {value}" if value else ""


def _tags(text: str) -> str:
    """The most frequent ones."""
    try:
        folders = json.loads(text) if text else {}
        counts: dict[str, int] = {}
        for tags in folders.values():
            for tag, count in tags.items():
                counts[tag] = counts.get(tag, 0) + int(count)
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError):
        return "not readable"
    top = sorted(counts, key=lambda tag: -counts[tag])[:8]
    return ", ".join(f"{tag} {counts[tag]}" for tag in top)


def mean_spectrum(modules: Sequence[ModuleSummary], points: int) -> Tensor:
    """[points] mean singular values by place, relative to each module's largest; 0 where a module has no more."""
    table = torch.zeros(len(modules), points, dtype=torch.float64)
    for row, module in zip(table, modules, strict=True):
        count = min(points, len(module.values))
        if count:
            row[:count] = module.values[:count] / module.values[0]
    return table.mean(0)
