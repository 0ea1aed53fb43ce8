"""The optimizer, made for once on one small matrix: whatever stops it here would stop it after the model is loaded."""

import dataclasses as dc
import inspect
import logging
import re
from collections.abc import Iterator
from typing import Any

from hina_kohya.core.hyper import did_you_mean, nearest
from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error, warning
from hina_kohya.kohya.checking.optimizer import MISTAKES, OPTION, Optimizer, installed, namesakes
from hina_kohya.kohya.checking.reading import toml_line
from hina_kohya.kohya.checking.rules import rule, rule_of
from hina_kohya.kohya.checking.rules.optimizer_arguments import lr_in_arguments, tuple_by_comma
from hina_kohya.kohya.checking.rules.optimizer_names import dadaptation_path
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

_REMOVED = ("Simplified_AdEMAMix", "Lion_Prodigy_adv")
_RELOADED = "tried: accelerate reloads an optimizer's state before the first step"


@rule
def optimizer_unknown(context: Context) -> Iterator[Finding]:
    optimizer = context.optimizer
    if not _is_inspected(context):
        return
    try:
        optimizer.load()
    except (ImportError, AttributeError) as mistake:
        removed = "; adv_optm 2.5 removed it" * (optimizer.last in _REMOVED)
        what = f"there is no {optimizer.path}{removed}" if isinstance(mistake, AttributeError) else str(mistake)
        near = nearest(optimizer.last, namesakes(optimizer))
        prefix = optimizer.type.rpartition(".")[0]
        fix = toml_line("optimizer_type", f"{prefix}.{near[0]}" if prefix else near[0]) if near else ""
        yield error("optimizer_type", what, "tried; the trainer imports it after the model is loaded", fix)


@rule
def optimizer_refuses(context: Context) -> Iterator[Finding]:
    if not _is_inspected(context) or any(lr_in_arguments(context)) or any(tuple_by_comma(context)):
        return
    try:
        cls = context.optimizer.load()
    except (ImportError, AttributeError):
        return
    yield from _trial(context, cls)


@rule_of(SD_SCRIPTS)
def never_in_eval_mode(context: Context) -> Iterator[Finding]:
    """Schedule-free optimizers train at one point and are meant to be saved at another."""
    optimizer = context.optimizer
    if not _is_inspected(context) or optimizer.lower.endswith("schedulefree"):
        return
    try:
        cls = optimizer.load()
    except (ImportError, AttributeError):
        return
    if callable(getattr(cls, "eval", None)) and callable(getattr(cls, "train", None)):
        yield warning(
            "optimizer_type",
            f"{optimizer.last} has an eval mode, and sd-scripts uses it only where the name ends in ScheduleFree: "
            "samples and files are made in training mode",
            f"read ({at('is_schedulefree_optimizer')}), and run",
            'optimizer_type = "AdamWScheduleFree"',
        )


def _is_inspected(context: Context) -> bool:
    """Not where another rule says it all, nor a plain name without arguments: that would import torch for nothing."""
    optimizer = context.optimizer
    if optimizer.clash or optimizer.refused or any(dadaptation_path(context)):
        return False
    if optimizer.registered:
        return context.hooks.active or "." in optimizer.type
    if optimizer.is_own:
        return bool(optimizer.arguments) and installed(optimizer.path.partition(".")[0])
    return True


def _trial(context: Context, cls: Any) -> Iterator[Finding]:
    optimizer = context.optimizer
    said = _Said()
    logger = logging.getLogger("hina_kohya")
    logger.addHandler(said)
    try:
        made = optimizer.rehearse(cls, context.args["learning_rate"])
        optimizer.reload(made)
    except MISTAKES as mistake:
        yield _refusal(optimizer, cls, mistake, context.at("get_optimizer"))
        return
    finally:
        logger.removeHandler(said)
    if not optimizer.is_torch(made):
        what = f"{optimizer.type} makes a {type(made).__name__}, which is no torch.optim.Optimizer"
        yield error("optimizer_type", what, "measured: the scheduler refuses it")
    elif _needs_closure(made):
        yield error(
            "optimizer_type",
            f"{optimizer.last} needs a closure, which the trainer does not give",
            "measured: TypeError at the first step",
            'optimizer_type = "AdamW"',
        )
    elif optimizer.path == "torch.optim.SparseAdam":
        yield error(
            "optimizer_type",
            "SparseAdam takes sparse gradients only",
            "measured: RuntimeError at the first step",
            'optimizer_type = "AdamW"',
        )
    for line in said.lines:
        yield dc.replace(warning(OPTION, line, "said by the optimizer itself"), rule="argument_idle")


def _refusal(optimizer: Optimizer, cls: Any, mistake: Exception, place: str) -> Finding:
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(mistake))
    if unknown and unknown[1] in optimizer.arguments:
        accepted = [
            name for name in inspect.signature(cls).parameters if name not in ("self", "params", "lr", "kwargs")
        ]
        near = nearest(unknown[1], accepted)
        fix = toml_line(OPTION, [f"{near[0]}={optimizer.arguments[unknown[1]]!r}"]) if near else ""
        what = f"{cls.__name__} has no argument {unknown[1]}; {did_you_mean(unknown[1], accepted)}"
        return error(OPTION, what, "tried: TypeError", fix)
    words = str(mistake) or "nothing said"
    if isinstance(mistake, KeyError):
        return error("optimizer_type", f"{optimizer.type} stops with KeyError {words}", _RELOADED)
    key = OPTION if any(name in words for name in optimizer.arguments) else "optimizer_type"
    evidence = f"tried: made on an 8x8 matrix as the trainer makes it ({place})"
    return error(key, f"{optimizer.type} stops: {words}", evidence)


def _needs_closure(made: Any) -> bool:
    closure = inspect.signature(made.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


class _Said(logging.Handler):
    """The warnings that our optimizers log about arguments."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
