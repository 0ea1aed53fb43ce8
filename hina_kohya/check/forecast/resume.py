"""A saved state beside the run that would resume from it: names, shapes, groups, optimizer and learning rates."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hina_kohya.check.model_files import tensors_of

# What torch raises for files that are damaged or hold something else.
_UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, pickle.UnpicklingError)
_SHOWN = 3


def differences(folder: Path, network: Any, groups: Sequence[Mapping[str, Any]], optimizer: Any) -> Iterator[str]:
    """What would stop the run, or count in the place of what was typed, a sentence each."""
    yield from _of_weights(folder / "model.safetensors", network)
    saved = _loaded(folder / "optimizer.bin")
    if not isinstance(saved, dict) or "param_groups" not in saved:
        yield f"error: resume: {folder / 'optimizer.bin'} cannot be read as an optimizer's state"
        return
    yield from _of_groups(saved["param_groups"], groups)
    if optimizer is not None:
        yield from _of_optimizer(saved["param_groups"], optimizer)
    yield from _of_schedule(folder / "scheduler.bin", groups)


def _of_weights(file: Path, network: Any) -> Iterator[str]:
    if not file.is_file():
        return
    try:
        saved = tensors_of(file)
    except (OSError, ValueError, KeyError, TypeError):
        yield f"error: resume: {file} is damaged"
        return
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    lacking, beyond = sorted(wanted.keys() - saved.keys()), sorted(saved.keys() - wanted.keys())
    if lacking or beyond:
        yield (
            f"error: resume: the state is of another network: {len(lacking):,} of its {len(wanted):,} tensors are not "
            f"in it, and {len(beyond):,} others are ({', '.join((lacking or beyond)[:_SHOWN])})"
        )
    unlike = [name for name in wanted.keys() & saved.keys() if wanted[name] != saved[name]]
    if unlike:
        name = min(unlike)
        yield (
            f"error: resume: the state has other shapes in {len(unlike):,} tensors, as of another rank: {name} "
            f"is {list(saved[name])} there and {list(wanted[name])} here"
        )


def _of_groups(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    there, here = [len(group["params"]) for group in saved], [len(group["params"]) for group in groups]
    if there != here:
        counts = f"{_listed(there)} tensors, and this run makes {_listed(here)}"
        yield f"error: resume: the state has param groups of {counts}"


def _of_optimizer(saved: Sequence[Mapping[str, Any]], optimizer: Any) -> Iterator[str]:
    there = {key for group in saved for key in group} - {"initial_lr", "param_names"}
    here = {key for group in optimizer.param_groups for key in group} - {"initial_lr", "param_names"}
    if missing := sorted(here - there):
        names = ", ".join(missing[:_SHOWN])
        yield f"error: resume: the state is another optimizer's: {names} of {type(optimizer).__name__} is not in it"


def _of_schedule(file: Path, groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    saved = _loaded(file)
    bases = saved.get("base_lrs") if isinstance(saved, dict) else None
    here = [group.get("lr") for group in groups]
    if isinstance(bases, list) and len(bases) == len(here) and None not in here and bases != here:
        rates = f"{_listed(bases)}, and not those of this run, {_listed(here)}"
        yield f"warning: resume: the state's learning rates count, {rates}"


def _loaded(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE:
        return None


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{each:g}" for each in values)
