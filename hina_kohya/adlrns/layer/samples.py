"""Which of a model's inputs and outputs have a sample per row, and whether its layers keep the samples apart."""

import dataclasses as dc
import enum
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def over_tensors(value: Any, one: Callable[[Tensor, str], Any], name: str, strict: bool = True) -> Any:
    """``value`` with ``one(tensor, its name)`` for each tensor in it, through tuples, lists, dictionaries and
    dataclasses; numbers and texts as they are.

    Raises ValueError if ``strict`` for what may hold samples and is not known: lists of numbers or texts, and other
    objects. Else those stay as they are.
    """

    def inside(each: Any, key: Any) -> Any:
        return over_tensors(each, one, f"{name}.{key}", strict)

    if isinstance(value, Tensor):
        return one(value, name)
    if value is None or isinstance(value, _OPTIONS):
        return value
    if dc.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dc.fields(value) if field.init]
        return type(value)(**{key: inside(getattr(value, key), key) for key in names})
    if isinstance(value, Mapping):
        return type(value)({key: inside(each, key) for key, each in value.items()})  # type: ignore[call-arg]
    is_plain_list = isinstance(value, list) and any(isinstance(each, _OPTIONS) for each in value)
    if isinstance(value, (tuple, list)) and not is_plain_list:
        items = [inside(each, number) for number, each in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)  # "_fields": a named tuple
    if not strict:
        return value
    kind = "list of numbers or texts" if is_plain_list else type(value).__name__
    raise ValueError(
        f"{name} is a {kind}, in which samples cannot be told apart; use tensors with a row per sample, or name it in "
        f"compress(..., shared=[{name.partition('.')[0]!r}]) if it is an input that is the same for all of them"
    )


_OPTIONS = (bool, int, float, complex, str, torch.dtype, torch.device, enum.Enum)


def tensors(value: Any) -> list[Tensor]:
    results: list[Tensor] = []
    over_tensors(value, lambda tensor, _name: results.append(tensor), "output")
    return results


def over_samples(
    side: Mapping[str, Any], samples: int, one: Callable[[Tensor], Tensor], shared: Collection[str]
) -> dict[str, Any]:
    """Side inputs with ``one(tensor)`` for those that have a sample per row. Those named in ``shared`` are the same for
    all samples, as are numbers, texts and tensors of no dimension: they stay. Raises ValueError for all else."""

    def each(tensor: Tensor, name: str) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        if len(tensor) != samples:
            top = name.partition(".")[0]
            raise ValueError(
                f"side input {name} has shape {tuple(tensor.shape)} for a batch of {samples} samples; give it a row "
                f"per sample, or name it in compress(..., shared=[{top!r}]) if it is the same for all of them"
            )
        return one(tensor)

    return {name: value if name in shared else over_tensors(value, each, name) for name, value in side.items()}


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
    for name, arguments in whole.items():
        for tensor in (*arguments, *part[name]):
            if len(tensor) not in (len(few), len(rows)):
                raise ValueError(
                    f"{name} is given {tuple(tensor.shape)} for a batch of {len(few)} samples; samples must stay along "
                    f"dimension 0, so exclude it: exclude=[{name!r}]"
                )
        if len(arguments) != len(part[name]) or not all(map(_same, (t[rows] for t in arguments), part[name])):
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
    arguments: dict[str, list[Tensor]] = {name: [] for name in modules}

    def hook(name: str) -> Callable[..., None]:
        return lambda _module, args: arguments[name].append(args[0].clone())

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        return arguments, model(x[rows], **over_samples(side, len(x), lambda tensor: tensor[rows], shared))
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
