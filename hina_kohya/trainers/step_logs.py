"""A trainer's scalars of a step: the rate that `use_auto_lr` found, under the name that Prodigy's has there."""

from typing import Any

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.report import found_rate

D_TIMES_LR = "lr/d*lr/"


def step_logs(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of the trainer's function, which returns the scalars by name; the learning rates are among them."""
    logs = wrapped(*args, **kwargs)
    optimizer = next(filter(None, map(_hina, (*args, *kwargs.values()))), None)
    rate = None if optimizer is None else found_rate(optimizer)
    if rate is None or optimizer is None:
        return logs
    names = [name for name in logs if name.startswith("lr/") and not name.startswith(D_TIMES_LR)]
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    return logs | {D_TIMES_LR + name[len("lr/") :]: rate * lr for name, lr in zip(names, rates, strict=False)}


def _hina(thing: Any) -> HinaOptimizer | None:
    """An optimizer of ours, or the one in a wrapper of accelerate's, or of a scheduler's."""
    for _ in range(3):
        if isinstance(thing, HinaOptimizer):
            return thing
        thing = getattr(thing, "scheduler", None) or getattr(thing, "optimizer", None)
    return None
