"""Which of a model's inputs and outputs have a sample per row, and whether its layers keep the samples apart."""

import dataclasses as dc
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def over_tensors(value: Any, one: Callable[[Tensor, str], Any], name: str) -> Any:
    """``value`` with ``one(tensor, its name)`` for each tensor in it, through tuples, lists, dictionaries and
    dataclasses; all else as it is."""
    if isinstance(value, Tensor):
        return one(value, name)
    if dc.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dc.fields(value) if field.init}
        return type(value)(**{key: over_tensors(each, one, f"{name}.{key}") for key, each in fields.items()})
    if isinstance(value, Mapping):
        parts = {key: over_tensors(each, one, f"{name}.{key}") for key, each in value.items()}
        return type(value)(parts)  # type: ignore[call-arg]
    if isinstance(value, (tuple, list)):
        items = [over_tensors(each, one, f"{name}.{number}") for number, each in enumerate(value)]
        return (
            type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        )  # a named tuple takes them singly
    return value


def tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    over_tensors(value, lambda tensor, _name: found.append(tensor), "")
    return found


def over_samples(
    side: Mapping[str, Any], samples: int, one: Callable[[Tensor], Tensor], shared: Collection[str]
) -> dict[str, Any]:
    """Side inputs with ``one(tensor)`` for those that have a sample per row. Those named in ``shared`` are the same for
    all samples, as are numbers and tensors of no dimension: they stay. Raises ValueError for any other shape."""

    def each(tensor: Tensor, name: str) -> Tensor:
        if tensor.dim() == 0 or name.partition(".")[0] in shared:
            return tensor
        if len(tensor) != samples:
            top = name.partition(".")[0]
            raise ValueError(
                f"side input {name} has shape {tuple(tensor.shape)} for a batch of {samples} samples; give it a row "
                f"per sample, or name it in compress(..., shared=[{top!r}]) if it is the same for all of them"
            )
        return one(tensor)

    return {name: over_tensors(value, each, name) for name, value in side.items()}


def output_samples(output: Any, samples: int, one: Callable[[Tensor], Tensor]) -> Any:
    """The output with ``one(tensor)`` for each of its tensors. Raises ValueError if one has no row per sample."""

    def each(tensor: Tensor, _name: str) -> Tensor:
        if tensor.shape[:1] != (samples,):
            raise ValueError(
                f"the model must return tensors of {samples} samples along dimension 0; one has shape "
                f"{tuple(tensor.shape)}"
            )
        return one(tensor)

    if not tensors(output):
        raise ValueError(f"the model must return tensors of {samples} samples; it returned {type(output).__name__}")
    return over_tensors(output, each, "output")


def names_of(model: nn.Module, args: tuple[Any, ...]) -> Iterator[str]:
    """The names that the model's forward has for these positional arguments, which come after its first."""
    places = [
        each.name
        for each in inspect.signature(model.forward).parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ][1:]
    for number in range(len(args)):
        yield places[number] if number < len(places) else f"argument {number + 2}"


@torch.no_grad()
def check_apart(
    model: nn.Module, modules: dict[str, nn.Module], x: Tensor, side: Mapping[str, Any], shared: Collection[str]
) -> None:
    """Run up to four samples of the batch x, then the last half of them, backwards: what modules are given for a
    sample, and what the model returns for it, must be the same. Raises ValueError that names what is not."""
    few = torch.arange(min(4, len(x)), device=x.device)
    rows = few.flip(0)[: len(few) // 2]
    whole, output = _run(model, modules, x, side, shared, few)
    part, again = _run(model, modules, x, side, shared, rows)
    for name, given in whole.items():
        for tensor in (*given, *part[name]):
            if len(tensor) not in (len(few), len(rows)):
                raise ValueError(
                    f"{name} is given {tuple(tensor.shape)} for a batch of {len(few)} samples; samples must stay along "
                    f"dimension 0, so exclude it: exclude=[{name!r}]"
                )
        if len(given) != len(part[name]) or not all(map(_same, (t[rows] for t in given), part[name])):
            raise ValueError(
                f"what {name} is given for a sample depends on the batch that the sample is in, or on chance; exclude "
                f"it: exclude=[{name!r}]"
            )
    pairs = zip(tensors(output_samples(output, len(few), lambda y: y[rows])), tensors(again), strict=True)
    if not all(_same(one, other) for one, other in pairs):
        raise ValueError(
            "what the model returns for a sample depends on the batch that the sample is in, or on chance; samples are "
            "sorted by their complexity, so this model cannot be compressed"
        )


def _run(
    model: nn.Module,
    modules: dict[str, nn.Module],
    x: Tensor,
    side: Mapping[str, Any],
    shared: Collection[str],
    rows: Tensor,
) -> tuple[dict[str, list[Tensor]], Any]:
    """(inputs of each module's calls, output) for some rows of a batch."""
    given: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, args: given[name].append(args[0].clone())

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        return given, model(x[rows], **over_samples(side, len(x), lambda tensor: tensor[rows], shared))
    finally:
        for handle in handles:
            handle.remove()


def _same(one: Tensor, other: Tensor) -> bool:
    """But for rounding, which depends on how many rows a product has."""
    if one.shape != other.shape:
        return False
    a, b = one.double().nan_to_num(), other.double().nan_to_num()
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 3e-2
    return float((a - b).norm()) <= tolerance * float(a.norm())
