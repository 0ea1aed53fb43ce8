"""The optimizer and the schedule of a run, made and stepped twice: what stops them here stops the run later.

Everything happens in a process of its own (`stage`), which alone imports torch.
"""

import dataclasses as dc
import pickle
from functools import lru_cache
from typing import Any

from hina_kohya.check.optimizer import Optimizer
from hina_kohya.check.process import SHARED
from hina_kohya.trainers.facts.schedulers import Calling


@dc.dataclass(frozen=True)
class Rehearsal:
    """How far it came.

    stage  : import, class (it is none of an optimizer), make, reload, step, schedule, schedule class (it is none), done
    error  : the name of what was raised there, "" for nothing; message: its text
    near   : names that could have been meant, where there is no such class
    accepts: names of the class's arguments
    lines  : warnings that it logged
    modes  : it has a mode for training and one for evaluation
    moved  : a parameter changed in the second step; finite: all of them are numbers
    died   : it ended the process; the error with which it did
    """

    stage: str
    error: str = ""
    message: str = ""
    near: tuple[str, ...] = ()
    accepts: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    modes: bool = False
    closure: bool = False
    moved: bool = True
    finite: bool = True
    died: str = ""


def rehearse(optimizer: Optimizer, lr: float | None, dtype: str, schedule: Calling | None) -> Rehearsal:
    making = optimizer.trainer.optimizers.making(optimizer.type, optimizer.arguments, lr)
    if optimizer.registered and optimizer.hooked:
        path, arguments, rate = optimizer.path, optimizer.arguments, lr
    elif making.refusal:
        return Rehearsal("make", "TypeError", making.refusal)
    else:
        path, arguments, rate = making.path, making.arguments, making.lr
    if rate is None:
        schedule = None  # Adafactor's own
    call = None if schedule is None else (schedule.path, dict(schedule.keywords))
    request = {
        "path": path, "arguments": dict(arguments), "lr": rate, "dtype": dtype, "schedule": call,
        "short": "." not in optimizer.type,
    }  # fmt: skip
    return _asked(pickle.dumps(request))


@lru_cache(maxsize=256)
def _asked(request: bytes) -> Rehearsal:
    answer = SHARED.ask({"what": "rehearsal", **pickle.loads(request)}, timeout=120)
    if answer.fault or "stage" not in answer.content:
        return Rehearsal("died", died=answer.fault or str(answer.content.get("error", "")))
    content: dict[str, Any] = answer.content
    names = {field.name for field in dc.fields(Rehearsal)}
    fields: dict[str, Any] = {key: each for key, each in content.items() if key in names}
    fields |= {key: tuple(each) for key, each in fields.items() if isinstance(each, list)}
    return Rehearsal(**fields)
