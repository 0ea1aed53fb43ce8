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
    state = _loaded(folder / "optimizer.bin")
    if not isinstance(state, dict) or "param_groups" not in state:
        yield f"error: resume: {folder / 'optimizer.bin'} cannot be read as an optimizer's state"
        return
    yield from _of_groups(state["param_groups"], groups)
    if optimizer is not None:
        yield from _of_optimizer(state["param_groups"], optimizer)
    yield from _of_schedule(folder / "scheduler.bin", groups)


def _of_weights(file: Path, network: Any) -> Iterator[str]:
    if not file.is_file():
        return
    try:
        weights = tensors_of(file)
    except (OSError, ValueError, KeyError, TypeError):
        yield f"error: resume: {file} is damaged"
        return
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    gaps, extras = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if gaps or extras:
        yield (
            f"error: resume: the state is of another network: {len(gaps):,} of its {len(shapes):,} tensors are not "
            f"in it, and {len(extras):,} others are ({', '.join((gaps or extras)[:_SHOWN])})"
        )
    misfits = [name for name in shapes.keys() & weights.keys() if shapes[name] != weights[name]]
    if misfits:
        name = min(misfits)
        yield (
            f"error: resume: the state has other shapes in {len(misfits):,} tensors, as of another rank: {name} "
            f"is {list(weights[name])} there and {list(shapes[name])} here"
        )


def _of_groups(saved_groups: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    there, here = [len(group["params"]) for group in saved_groups], [len(group["params"]) for group in groups]
    if there != here:
        counts = f"{_listed(there)} tensors, and this run makes {_listed(here)}"
        yield f"error: resume: the state has param groups of {counts}"


def _of_optimizer(saved_groups: Sequence[Mapping[str, Any]], optimizer: Any) -> Iterator[str]:
    there = {key for group in saved_groups for key in group} - {"initial_lr", "param_names"}
    here = {key for group in optimizer.param_groups for key in group} - {"initial_lr", "param_names"}
    if gaps := sorted(here - there):
        names = ", ".join(gaps[:_SHOWN])
        yield f"error: resume: the state is another optimizer's: {names} of {type(optimizer).__name__} is not in it"


def _of_schedule(file: Path, groups: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    state = _loaded(file)
    bases = state.get("base_lrs") if isinstance(state, dict) else None
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
