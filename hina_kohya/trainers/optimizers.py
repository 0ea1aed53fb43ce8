"""A trainer's `get_optimizer`, with the names of the entry-point group and forgiving arguments in front of it."""

import inspect
import logging
from typing import Any

from torch.optim import Optimizer

from hina_kohya.text import did_you_mean
from hina_kohya.trainers import (
    averages,
    calibrating,
    guard,
    held_out,
    loop,
    optimizer_args,
    optimizer_names,
    own_validation,
)
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.groups import named_alike
from hina_kohya.trainers.trainer import Trainer

logger = logging.getLogger("hina_kohya")

Built = tuple[str, str, Any]  # what ss_optimizer is made of, and the optimizer


def get_optimizer(trainer: Trainer, wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of the trainer's function, which still makes every optimizer that is not registered."""
    settings, params = _bound(*args, **kwargs)
    held_out.require(trainer, settings)
    params = named_alike(params)
    old_flags = getattr(settings, "use_8bit_adam", False) or getattr(settings, "use_lion_optimizer", False)
    cls = None if old_flags else optimizer_names.resolve(settings.optimizer_type, trainer)
    if cls is None:
        with guard.passing():
            result = wrapped(settings, params)
    else:
        if getattr(settings, "fused_backward_pass", False):
            raise UserError("--fused_backward_pass works with Adafactor only; remove it")
        result = build(cls, settings.optimizer_args, params, settings.learning_rate)
        result = (*result, *_modes(result[2])) if trainer.returns_modes else result
    _require_decay(result[2])
    averages.follow(result[2])
    calibrating.follow(result[2], lambda: loop.left(settings), lambda: loop.read("accelerator")["accelerator"].scaler)
    if trainer.after_step:
        own_validation.begin(instance, settings, result[-2:])
    return result


def build(cls: Any, words: Any, params: Any, lr: float) -> Built:
    """An optimizer from `--optimizer_args`; raises UserError for arguments that it refuses."""
    options = optimizer_args.parse(words)
    try:
        with guard.passing():
            optimizer = cls(params, lr=lr, **options)
    except (TypeError, ValueError, AttributeError) as error:
        signature = inspect.signature(cls).parameters
        accepted = [name for name in signature if name not in ("params", "kwargs")]
        unknown = [name for name in options if name not in accepted]
        # A class that takes any keyword names the culprit itself.
        takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.values())
        hint = f"; {did_you_mean(unknown[0], accepted)}" if unknown and not takes_any else ""
        given = ", ".join(f"{name}={value!r}" for name, value in options.items()) or "its parameters"
        raise UserError(f"optimizer_type {cls.__name__} refused {given}: {error}{hint}") from error
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"optimizer_type {cls.__name__} is not a torch.optim.Optimizer but {type(optimizer).__name__}")
    described = ",".join(f"{name}={value}" for name, value in options.items())
    logger.info("use %s.%s | %s", cls.__module__, cls.__name__, options)
    if callable(train := getattr(optimizer, "train", None)):
        train()
    return f"{cls.__module__}.{cls.__name__}", described, optimizer


def _bound(args: Any, trainable_params: Any) -> tuple[Any, Any]:
    """The two arguments under the trainers' own names, however they were given.

    sd-scripts before 0.9 hands on what the network returned, which today's LyCORIS makes (groups, descriptions).
    """
    pair = isinstance(trainable_params, tuple) and len(trainable_params) == 2
    return args, trainable_params[0] if pair and isinstance(trainable_params[0], list) else trainable_params


def _modes(optimizer: Any) -> tuple[Any, Any]:
    """What sets training and evaluation mode, which do nothing for most optimizers."""
    if callable(getattr(optimizer, "train", None)):
        return optimizer.train, optimizer.eval
    return _nothing, _nothing


def _nothing() -> None:
    pass


def _require_decay(optimizer: Any) -> None:
    """A group's decay acts only where the optimizer knows the word."""
    asked = any("decays" in group for group in optimizer.param_groups)
    if asked and "weight_decay" not in optimizer.defaults:
        name = type(optimizer).__name__
        raise UserError(f"{name} has no weight_decay; remove weight_decay, wd_roles and wd_exclude from network_args")
