"""What trainers do with `--lr_scheduler`, `--lr_scheduler_type` and their options.

sd-scripts 0.10.1 and 0.11.1, musubi-tuner 0.3.4. A contract test holds every row against the real `get_scheduler_fix`.
"""

import dataclasses as dc
from collections.abc import Mapping
from typing import Any

WARMUP, DECAY = "lr_warmup_steps", "lr_decay_steps"
CYCLES, POWER = "lr_scheduler_num_cycles", "lr_scheduler_power"
TIMESCALE, LEAST = "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio"
OPTIONS = (WARMUP, DECAY, CYCLES, POWER, TIMESCALE, LEAST)


@dc.dataclass(frozen=True)
class Row:
    """One name of `--lr_scheduler`.

    function: of transformers.optimization, or of diffusers where `diffusers` says so
    reads   : the options that reach it; another one is never read
    warms_up: False where a warm-up is a ValueError
    needs   : an option without which it raises
    """

    name: str
    function: str
    reads: tuple[str, ...] = ()
    warms_up: bool = True
    needs: str = ""


ROWS = {
    row.name: row
    for row in (
        Row("linear", "get_linear_schedule_with_warmup", (WARMUP,)),
        Row("cosine", "get_cosine_schedule_with_warmup", (WARMUP,)),
        Row("cosine_with_restarts", "get_cosine_with_hard_restarts_schedule_with_warmup", (WARMUP, CYCLES)),
        Row("polynomial", "get_polynomial_decay_schedule_with_warmup", (WARMUP, POWER)),
        Row("constant", "get_constant_schedule", warms_up=False),
        Row("constant_with_warmup", "get_constant_schedule_with_warmup", (WARMUP,)),
        Row("inverse_sqrt", "get_inverse_sqrt_schedule", (WARMUP, TIMESCALE)),
        Row("cosine_with_min_lr", "get_cosine_with_min_lr_schedule_with_warmup", (WARMUP, CYCLES, LEAST), needs=LEAST),
        Row("warmup_stable_decay", "get_wsd_schedule", (WARMUP, DECAY, CYCLES, LEAST)),
    )
}
# Made from lr_scheduler_args alone, by diffusers.
PIECEWISE = "piecewise_constant"
# transformers has them, and they cannot be made from the trainers' options.
UNUSABLE = ("reduce_lr_on_plateau", "cosine_warmup_with_min_lr")
ADAFACTOR = "adafactor"
OF_MUSUBI = ("rex",)


@dc.dataclass(frozen=True)
class Calling:
    """The function or class that makes the schedule, and its keywords. refusal: why the trainer stops before"""

    path: str
    keywords: Mapping[str, Any]
    refusal: str = ""


def reads(name: str, kind: str) -> tuple[str, ...]:
    """The options that reach a schedule; none reach a class of --lr_scheduler_type."""
    return () if kind or name not in ROWS else ROWS[name].reads


def calling(args: Mapping[str, Any], arguments: Mapping[str, Any]) -> Calling:
    """`arguments`: of lr_scheduler_args. Of one process; schedule-free optimizers and Adafactor's own get another."""
    name, kind, steps = args["lr_scheduler"], args["lr_scheduler_type"], args["max_train_steps"]
    if kind:
        return Calling(kind if "." in kind else f"torch.optim.lr_scheduler.{kind}", arguments)
    if name == PIECEWISE:
        return Calling("diffusers.optimization.get_piecewise_constant_schedule", arguments)
    row = ROWS.get(name)
    if row is None:
        return Calling("", arguments, f"there is no schedule {name}")
    warmup, decay = (int(each * steps) if isinstance(each, float) else each for each in (args[WARMUP], args[DECAY]))
    keywords: dict[str, Any] = {}
    if WARMUP in row.reads:
        keywords["num_warmup_steps"] = warmup
    if name == "inverse_sqrt":
        keywords["timescale"] = args[TIMESCALE]
    elif name == "warmup_stable_decay":
        keywords |= {
            "num_stable_steps": steps - warmup - decay,
            "num_decay_steps": decay,
            "num_cycles": args[CYCLES] / 2,
        }
        keywords["min_lr_ratio"] = args[LEAST] if args[LEAST] is not None else 0.0
    elif name not in ("constant", "constant_with_warmup"):
        keywords["num_training_steps"] = steps
        keywords |= {"num_cycles": args[CYCLES]} if name == "cosine_with_restarts" else {}
        keywords |= {"power": args[POWER]} if name == "polynomial" else {}
        keywords |= {"num_cycles": args[CYCLES] / 2, "min_lr_rate": args[LEAST]} if name == "cosine_with_min_lr" else {}
    clashes = [key for key in keywords if key in arguments]
    refusal = f"the trainer gives {clashes[0]} itself" if clashes else ""
    return Calling(f"transformers.optimization.{row.function}", {**keywords, **arguments}, refusal)
