"""The weighted average of files of one run, number by number: a soup.

Not what `merge` does. That sums what each file does to the model, which fits files of any runs and takes a rank of its
own. Here the factors themselves are averaged, as an average kept while training would be: keys, shapes and size stay,
for any algorithm. It is right as long as the files lie on one path, on which up and down have turned little; factors of
two runs have nothing in common, and their average is noise (`LEAST_COSINE` tells them apart).
"""

import dataclasses as dc
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hina_kohya.loras import metadata, names, parts, power_profile, writing
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.reading import DTYPES, AdapterFile, refuse_same

Tick = Callable[[str, int], object]  # what is done now, of how many steps; once a step
# The least cosine between the factors of neighbouring files. Files of two seeds have less than 0.02, neighbours of a
# run 0.93 and more (the demo's LoRA and LoKr, a file every 100 steps).
LEAST_COSINE = 0.3
_STEPS = "ss_steps"
_ALIKE = (parts.ALPHA, parts.MAGNITUDE, *parts.ADDED)  # those are near each other in any two runs


@dc.dataclass(frozen=True)
class Share:
    """A file and how much of the average it is. steps: of the training so far; None: the file does not say."""

    file: AdapterFile
    weight: float
    steps: int | None


@dc.dataclass(frozen=True)
class Soup:
    """The files of one run that are averaged, in the order of their steps; weights sum to 1."""

    shares: tuple[Share, ...]
    how: str
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """What is done."""
        first, last = self.shares[0].file.path, self.shares[-1].file.path
        return f"average of {len(self.shares)} files, {first.name} to {last.name}, {self.how}"

    def write(self, output: Path, tick: Tick = lambda what, total: None) -> None:
        """Whole or not at all; one tensor at a time is in memory. Raises AdapterError and OSError."""
        files = [share.file for share in self.shares]
        refuse_same([file.path for file in files], output)
        layout = {key: (shape, _dtype(key, files)) for key, shape in files[0].shapes.items()}

        def average(key: str) -> Tensor:
            total = torch.zeros(files[0].shapes[key], dtype=torch.float64)
            for share in self.shares:
                total.add_(share.file.tensor(key).double(), alpha=share.weight)
            return total

        writing.write(output, layout, self._metadata(files), average, lambda: tick("writing", len(layout)))

    def _metadata(self, files: Sequence[AdapterFile]) -> dict[str, str]:
        content = {key: value for key, value in metadata.carried(files).items() if not key.startswith("sshs_")}
        line = f"hina-kohya: {self.line}"
        weights = {share.file.path.name: round(share.weight, 6) for share in self.shares}
        content |= {
            "format": "pt",
            metadata.AVERAGE: json.dumps({"done": line, "weights": weights}, ensure_ascii=False),
        }
        if any(key.startswith("ss_") for key in content):
            comment = content.get("ss_training_comment", "")
            content["ss_training_comment"] = f"{line}; {comment}" if comment else line
        if names.styles_of([*files[0].modules]) == "kohya":
            content |= {writing.MODEL_HASH: "0" * 64, writing.LEGACY_HASH: "0" * 8}  # computed while writing
        return content


def soup(
    paths: Sequence[Path],
    weights: Sequence[float] | None = None,
    ema: float | None = None,
    tick: Tick = lambda what, total: None,
) -> Soup:
    """Open, check and weigh the files. Raises AdapterError.

    weights: of each file, by hand, above 0; None: averages among the files and repeats are left out
    ema    : sigma_rel of a power profile over the files' steps, instead; neither: all files alike
    """
    files = [AdapterFile(path) for path in paths]
    notes: list[str] = []
    if weights is None:
        files, notes = _snapshots(files)
    if len(files) < 2:
        problem = f"{files[0].path} is one file" if files else "no file is left"
        raise AdapterError(f"{problem}, and an average needs two or more" + "".join(f"; {note}" for note in notes))
    for file in files[1:]:
        _check_alike(files[0], file)
    _check_one_run(files, tick)
    if ema is not None:
        shares, how = _profile(files, ema), f"power profile ema={ema:g}"
    else:
        total = sum(weights or [1.0] * len(files))
        shares = [weight / total for weight in weights or [1.0] * len(files)]
        how = "all alike" if weights is None else "weighted by hand"
    return Soup(tuple(Share(*each, _steps(each[0])) for each in zip(files, shares, strict=True)), how, tuple(notes))


def _snapshots(files: Sequence[AdapterFile]) -> tuple[list[AdapterFile], list[str]]:
    """(the files in the order of their steps without averages and repeats, what is left out and why)."""
    averages = [file for file in files if metadata.AVERAGE in file.metadata]
    notes = [f"{file.path.name} is left out: it is an average already; with a weight it is taken" for file in averages]
    snapshots = [file for file in files if file not in averages]
    if all(_steps(file) is not None for file in snapshots):
        snapshots.sort(key=lambda file: (_steps(file) or 0, len(file.path.name)))
    distinct: list[AdapterFile] = []
    for file in snapshots:
        if (
            distinct
            and _steps(distinct[-1]) is not None
            and _steps(distinct[-1]) == _steps(file)
            and _equal(distinct[-1], file)
        ):
            notes.append(f"{file.path.name} is left out: it is {distinct[-1].path.name} again")
        else:
            distinct.append(file)
    return distinct, notes


def _equal(one: AdapterFile, other: AdapterFile) -> bool:
    same = one.shapes == other.shapes and one.dtypes == other.dtypes
    return same and all(torch.equal(one.tensor(key), other.tensor(key)) for key in one.shapes)


def _steps(file: AdapterFile) -> int | None:
    text = file.metadata.get(_STEPS, "")
    return int(text) if text.isdecimal() else None


def _profile(files: Sequence[AdapterFile], ema: float) -> list[float]:
    try:
        gamma = power_profile.exponent(ema)
    except ValueError as error:
        raise AdapterError(f"--ema {ema:g} {error}") from None
    steps = []
    for file in files:
        count = _steps(file)
        if not count:
            raise AdapterError(
                f"{file.path} does not say after how many steps it was saved ({_STEPS}), which --ema goes by; "
                "give weights by hand, as in a.safetensors:0.3"
            )
        steps.append(count)
    return power_profile.shares(steps, gamma)


def _check_alike(first: AdapterFile, file: AdapterFile) -> None:
    """Raises AdapterError for files of other networks."""
    if first.shapes.keys() != file.shapes.keys():
        only = next(iter(sorted(first.shapes.keys() ^ file.shapes.keys())))
        raise AdapterError(
            f"{only} is in one of {first.path} and {file.path} only; an average needs files of one run, "
            'and "hina-kohya merge" takes any'
        )
    for key, shape in first.shapes.items():
        if file.shapes[key] != shape:
            raise AdapterError(
                f"{key} is {list(shape)} in {first.path} and {list(file.shapes[key])} in {file.path}; an average needs "
                'files of one run, and "hina-kohya merge" takes any rank'
            )
    alphas = [named[parts.ALPHA] for named in first.modules.values() if parts.ALPHA in named]
    for key in alphas:
        if not torch.equal(first.tensor(key).double(), file.tensor(key).double()):
            raise AdapterError(
                f"{key} is not the same in {first.path} and {file.path}; an average needs files of one run, "
                'and "hina-kohya merge" takes any alpha'
            )


def _check_one_run(files: Sequence[AdapterFile], tick: Tick) -> None:
    """Raises AdapterError where the factors of two neighbours point elsewhere, as those of two runs do."""
    keys = [key for named in files[0].modules.values() for part, key in named.items() if part not in _ALIKE]
    sums = torch.zeros(len(files) - 1, 3, dtype=torch.float64)  # <a, b>, |a|^2, |b|^2 of neighbours
    for key in keys:
        before = files[0].tensor(key).double().flatten()
        for number, file in enumerate(files[1:]):
            after = file.tensor(key).double().flatten()
            sums[number] += torch.stack([before @ after, before @ before, after @ after])
            before = after
        tick("comparing", len(keys))
    for (inner, one, other), before, after in zip(sums.tolist(), files, files[1:], strict=False):
        if keys and inner < LEAST_COSINE * (one * other) ** 0.5:
            raise AdapterError(
                f"{before.path} and {after.path} are not of one run: their factors have a cosine of "
                f"{inner / (one * other) ** 0.5:.2f}, and neighbours of a run at least {LEAST_COSINE:g}; "
                'use "hina-kohya merge", which sums what they do'
            )


def _dtype(key: str, files: Sequence[AdapterFile]) -> torch.dtype:
    """The widest of a tensor's; fp8 is widened to bf16."""
    dtypes = [DTYPES.get(file.dtypes[key], torch.bfloat16) for file in files]
    result = dtypes[0]
    for dtype in dtypes[1:]:
        result = torch.promote_types(result, dtype)
    return result
