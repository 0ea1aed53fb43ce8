"""A trainer's scalars of a step: the rate that `use_auto_lr` found, under Prodigy's name, and those of `scalars`."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.optim import Optimizer

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.optim.report import found_rate
from hina_kohya.trainers import network_args, scalars

D_TIMES_LR = "lr/d*lr/"
_DESCRIPTIONS = 4  # place of `lr_descriptions` among the arguments, in every release


def step_logs(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of the trainer's function, which returns the scalars by name; the learning rates are among them.

    It is called where there is a tracker only, so nothing is measured where there is none.
    """
    logs = wrapped(*args, **kwargs)
    optimizer = next((each for thing in (*args, *kwargs.values()) for each in _optimizers(thing)), None)
    if optimizer is None:
        return logs
    names = [name[len("lr/") :] for name in logs if name.startswith("lr/") and not name.startswith(D_TIMES_LR)]
    rate = found_rate(optimizer) if isinstance(optimizer, HinaOptimizer) else None
    if rate is not None:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        logs |= {D_TIMES_LR + name: rate * lr for name, lr in zip(names, rates, strict=False)}
    settings = kwargs.get("args", args[0] if args else None)
    every = network_args.log_every(getattr(settings, "network_args", None))
    if every:
        descriptions = kwargs.get("lr_descriptions", args[_DESCRIPTIONS] if len(args) > _DESCRIPTIONS else None)
        groups = _group_names(descriptions, names, len(optimizer.param_groups))
        logs |= scalars.read(optimizer, every, groups)
    return logs


def _optimizers(thing: Any) -> Iterator[Optimizer]:
    """An optimizer, or the one in a wrapper of accelerate's, or of a scheduler's."""
    for _ in range(4):
        if isinstance(thing, Optimizer) and not type(thing).__module__.startswith("accelerate."):
            yield thing
            return
        thing = getattr(thing, "scheduler", None) or getattr(thing, "optimizer", None)


def _group_names(descriptions: Sequence[str] | None, logged: Sequence[str], count: int) -> list[str]:
    """What the trainer calls the groups in its own tags; by number where it names another number of them."""
    for names in (descriptions, logged):
        if names is not None and len(names) == count:
            return [
                name if name not in names[:number] else f"{name} {number}"  # networks.lora_sd3 has one name twice
                for number, name in enumerate(str(each).strip() for each in names)
            ]
    return [f"group{number}" for number in range(count)]
