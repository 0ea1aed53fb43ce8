"""A trainer's `get_scheduler`: a new learning rate on resume holds, though accelerate restores the schedule after it.

accelerate restores the optimizer, then the scheduler with the rates that it started from. By the first step both are
there, whatever the trainer did in between.
"""

from typing import Any

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.schedules import hold_rates


def get_scheduler(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In the place of the trainer's function, which makes the scheduler."""
    scheduler = wrapped(*args, **kwargs)
    for optimizer in (*args, *kwargs.values()):
        if isinstance(optimizer, HinaOptimizer):
            optimizer.register_step_pre_hook(lambda optimizer, *_: hold_rates(optimizer, scheduler))
    return scheduler
