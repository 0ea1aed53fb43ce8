"""`profile`: step optimizers beside each other on the same gradients, and say what a step costs and whose it is."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from hina_kohya.check.run import How
from hina_kohya.core.plan import keep_freed_memory
from hina_kohya.profile import sources, trace
from hina_kohya.profile.clock import machine
from hina_kohya.profile.rows import ADAMW, Profile, Row
from hina_kohya.profile.sources import Choice, Source
from hina_kohya.profile.subjects import Groups, Subject
from hina_kohya.trainers.errors import UserError

STEPS, WARMUP = 15, 3
BITSANDBYTES = "bitsandbytes AdamW8bit"
BESIDE = {ADAMW: Choice("AdamW"), BITSANDBYTES: Choice("AdamW8bit")}  # as trainers make them
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Tick = Callable[[str, int], None]  # what goes on, and of how many parts one is done
_STAGES = 4  # of making the network: its module, itself, its groups, the answer
# What another library's optimizer raises where it cannot step here.
_MISTAKES = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError, OSError)


def profile(
    what: str | Path | Iterable[tuple[str, Tensor]],
    optimizers: str | Sequence[str] = (),
    *,
    steps: int = STEPS,
    warmup: int = WARMUP,
    device: str | None = None,
    dtype: str = "fp32",
    beside: bool = True,
    trace_file: Path | None = None,
    how: How | None = None,
    tick: Tick | None = None,
) -> Profile:
    """What a step of each optimizer costs: state, launches, bytes moved, time; of ours also by technique.

    what      : the file of a run (a `Path`), a list of shapes or the name of a set ("sdxl-lora-r8"), or a module's
                ``named_parameters()``, of which only names, shapes and dtypes are taken: nothing of it is changed
    optimizers: each as "NAME argument=value ..."; by default the run's, or HinaAdamW
    steps     : timed steps of each, after ``warmup`` others, in turn; their median counts
    device    : "cuda" where there is one, else "cpu"
    dtype     : of parameters given as shapes: "fp32", "bf16" or "fp16"
    beside    : also torch's AdamW and bitsandbytes' AdamW8bit
    trace_file: also write two steps of each as a Chrome trace (.json or .json.gz), techniques named
    how       : for the file of a run, what `hina-kohya check` takes beside it
    tick      : is called as work proceeds

    Example::

        from hina_kohya.profile import profile

        profiles = [f"AutomagicCameAMP8bit profile={name}" for name in ("memory_optimized", "balanced")]
        print(profile("sdxl-lora-r8", profiles).text())
        result = profile(network.named_parameters(), "HinaAdamW state=bf16")
        result.row("HinaAdamW state=bf16").state_bytes

    Raises UserError for what cannot be read, made or stepped.
    """
    if steps < 1 or warmup < 1:
        raise UserError(f"steps = {steps} and warmup = {warmup} must be at least 1; the defaults are {STEPS}, {WARMUP}")
    if trace_file is not None:
        trace.check(trace_file, what if isinstance(what, Path) else None)
    place = _device(device)
    source = _source(what, dtype, how or How(), tick)
    choices = _choices(source, [optimizers] if isinstance(optimizers, str) else optimizers)
    with _notes() as notes:
        groups = source.tensors(place)
        gradients = [torch.empty_like(param, requires_grad=False) for group in groups for _, param in group["params"]]
        subjects, failures = _subjects(groups, gradients, choices, beside)
        failures += _first_step(subjects, gradients, set(choices))
    with _muted():  # with gradients by chance, what optimizers find in them means nothing
        _measure(subjects, gradients, steps, warmup - 1, tick)
        rows = [subject.row() for subject in subjects]
        if trace_file is not None:
            trace.write(trace_file, subjects)
    shapes = [tuple(shape) for group in source.groups for _, shape, _ in group["params"]]
    return Profile(
        source.about,
        sum(gradient.numel() for gradient in gradients),
        len(shapes),
        len(set(shapes)),
        str(source.dtype).removeprefix("torch."),
        str(place),
        machine(place),
        torch.get_num_threads(),
        torch.__version__,
        steps,
        (*rows, *failures),
        (*source.notes, *notes),
    )


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is none; write cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} cannot be measured here; write cpu, cuda or cuda:1")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r} is not there: torch sees {torch.cuda.device_count()} GPUs; write cpu")
    return device


def _source(what: str | Path | Iterable[tuple[str, Tensor]], dtype: str, how: How, tick: Tick | None) -> Source:
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
    if isinstance(what, Path):
        listener = (lambda _content: tick("reading the run", _STAGES)) if tick else None
        return sources.of_run(what, how, listener)
    if isinstance(what, str):
        return sources.of_shapes(what, DTYPES[dtype])
    return sources.of_parameters(what)


def _choices(source: Source, optimizers: Sequence[str]) -> dict[str, Choice]:
    own = [source.optimizer] if source.optimizer is not None else [] if optimizers else [Choice("HinaAdamW")]
    choices = [*own, *map(Choice.of, optimizers)]
    return {choice.label: choice for choice in choices}


def _subjects(
    groups: Groups, gradients: Sequence[Tensor], choices: dict[str, Choice], beside: bool
) -> tuple[list[Subject], list[Row]]:
    """Those that were asked for, then those beside them; of the latter also why one cannot be made."""
    resolved = {name: choice.resolved() for name, choice in choices.items()}
    subjects = [Subject(name, chosen, groups, gradients) for name, chosen in resolved.items()]
    plain = {(chosen.cls, tuple(chosen.words)) for chosen in resolved.values()}
    failures = []
    for name, choice in BESIDE.items() if beside else ():
        try:
            chosen = choice.resolved()
            if (chosen.cls, tuple(chosen.words)) not in plain:
                subjects.append(Subject(name, chosen, groups, gradients))
        except UserError as mistake:
            failures.append(Row(name, choice.name, error=str(mistake)))
    return subjects, failures


def _first_step(subjects: list[Subject], gradients: Sequence[Tensor], names: set[str]) -> list[Row]:
    """Drops from ``subjects`` what cannot step here. Raises UserError if it was asked for."""
    _renew(gradients)
    failures = []
    for subject in list(subjects):
        try:
            subject.step()
        except _MISTAKES as mistake:
            message = f"{type(mistake).__name__}: {' '.join(str(mistake).split())[:200]}"
            if subject.name in names:
                raise UserError(f"{subject.name} cannot step here: {message}") from mistake
            failures.append(Row(subject.name, subject.path, error=message))
            subjects.remove(subject)
    return failures


def _measure(
    subjects: Sequence[Subject], gradients: Sequence[Tensor], steps: int, warmup: int, tick: Tick | None
) -> None:
    keep_freed_memory()
    for number in range(warmup + steps):
        _renew(gradients)
        for subject in subjects:
            if number < warmup:
                subject.step()
            else:
                subject.measure()
            if tick is not None:
                tick("steps", len(subjects) * (warmup + steps))


def _renew(gradients: Sequence[Tensor]) -> None:
    for gradient in gradients:
        gradient.normal_(std=1e-3)


@contextmanager
def _notes() -> Iterator[list[str]]:
    """What our optimizers warn of while they are made and first stepped."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep(logging.WARNING)
    logger = logging.getLogger("hina_kohya")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@contextmanager
def _muted() -> Iterator[None]:
    logger = logging.getLogger("hina_kohya")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
