"""A trainer's loop while it runs: what it holds, and its epochs, which can be ended early.

The trainers keep their step, their network and what saves it in local variables, and hand them to nobody; and they ask
for `max_train_steps` after each step, but count their epochs before the first one.
"""

import itertools
import sys
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

from hina_kohya.trainers.errors import UserError

_LOOPS = ("_run_training_loop", "train")  # of musubi-tuner, within its `train`, and of sd-scripts


class _Run:
    modules: list[dict[str, Any]] = []  # whose `range` is ours
    ends = False


def read(*names: str) -> dict[str, Any]:
    """Those local variables of the loop that called us which it has. Raises UserError where none did."""
    variables = _loop().f_locals
    values = {name: variables[name] for name in names if name in variables}
    if isinstance(variables, dict):
        variables.clear()  # before Python 3.13 a copy that the frame keeps: models that it deletes would stay in memory
    return values


def left(args: Any) -> int:
    """Steps that the loop that called us has still to count."""
    return args.max_train_steps - read("global_step")["global_step"]


def _loop() -> FrameType:
    for frame, _ in traceback.walk_stack(sys._getframe(1)):
        code = frame.f_code
        if code.co_name in _LOOPS and "accelerator" in (*code.co_varnames, *code.co_cellvars):
            return frame
    options = "keep_best, stop_after, held_out and calibrate_steps"
    raise UserError(f"hina-kohya does not know the loop of this trainer; report it, and train without {options}")


def begin() -> None:
    """From now on `end` can end the loop that called us, or that is called by who did."""
    frame = _loop()
    _Run.ends = False
    frame.f_globals["range"] = _range  # in the place of the builtin, for that module alone
    _Run.modules.append(frame.f_globals)


def end(args: Any, step: int) -> None:
    """After this step the trainer ends as it does after its last one: it saves, and closes its trackers."""
    args.max_train_steps = step
    _Run.ends = True


def release() -> None:
    """Gives every module its own `range` back."""
    while _Run.modules:
        module = _Run.modules.pop()
        if module.get("range") is _range:
            del module["range"]
    _Run.ends = False


def _range(*numbers: int) -> Any:
    return (_Epochs if sys._getframe(1).f_code.co_name in _LOOPS else range)(*numbers)


class _Epochs:
    """A range that has no next number once the run ends."""

    def __init__(self, *numbers: int):
        self._numbers = range(*numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[int]:
        return itertools.takewhile(lambda _: not _Run.ends, self._numbers)
