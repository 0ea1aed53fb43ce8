"""Where an optimizer and a schedule are made and stepped. Only classes of torch's kinds are made."""

import contextlib
import inspect
import io
import logging
from importlib import import_module
from typing import Any

import torch

from hina_kohya.text import nearest
from hina_kohya.trainers import optimizer_names
from hina_kohya.trainers.facts.optimizers import SD_SCRIPTS

# What can go wrong when somebody else's class is imported, made and stepped.
MISTAKES = (
    ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError, AssertionError, IndexError,
    ArithmeticError, NotImplementedError, OSError, NameError, SyntaxError,
)  # fmt: skip
# Their functions, too, make schedules.
_FUNCTIONS = ("transformers.optimization", "diffusers.optimization")


def rehearse(
    path: str, arguments: dict[str, Any], lr: float | None, dtype: str, schedule: Any, short: bool
) -> dict[str, Any]:
    outcome: dict[str, Any] = {"stage": "import", "lines": []}
    try:
        with contextlib.redirect_stdout(io.StringIO()), torch.random.fork_rng(devices=[]):
            _steps(outcome, path, arguments, lr, dtype, schedule)
    except MISTAKES as mistake:
        outcome |= {"error": type(mistake).__name__, "message": str(mistake)[:500]}
        outcome |= {"near": _near(path, short)} if outcome["stage"] == "import" else {}
    return outcome


def _steps(
    outcome: dict[str, Any], path: str, arguments: dict[str, Any], lr: float | None, dtype: str, schedule: Any
) -> None:
    """Fills in `outcome` as far as it comes."""
    module, _, name = path.rpartition(".")
    cls: Any = getattr(import_module(module), name)
    outcome["stage"] = "class"
    is_one = isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
    if not is_one:
        outcome |= {"error": "TypeError", "message": f"a {type(cls).__name__}"}
        return
    outcome["modes"] = callable(getattr(cls, "eval", None)) and callable(getattr(cls, "train", None))
    outcome["accepts"] = [
        each for each in inspect.signature(cls).parameters if each not in ("self", "params", "lr", "kwargs")
    ]
    outcome["stage"] = "make"
    torch.manual_seed(0)
    # As of a LoRA: one matrix that begins at zero, and one that does not.
    params = [
        torch.nn.Parameter(values.to(getattr(torch, dtype))) for values in (torch.zeros(8, 8), torch.rand(8, 8) / 8)
    ]
    before = [param.detach().clone() for param in params]
    make: Any = cls
    with _Said(outcome["lines"]):  # what is said later is about these two matrices
        optimizer: Any = make([{"params": params} | ({} if lr is None else {"lr": lr})], lr=lr, **arguments)
    outcome["stage"] = "reload"
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does when it wraps one
    if outcome["modes"]:
        optimizer.train()
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    outcome["closure"] = closure is not None and closure.default is inspect.Parameter.empty
    if outcome["closure"]:
        return
    outcome["stage"] = "step"
    for scale in (0.0, 1e-3):  # the down matrix of a LoRA has no gradient in the first step
        for param in params:
            param.grad = torch.randn(param.shape).to(param.dtype) * scale
        optimizer.step()
    outcome["moved"] = any(not torch.equal(old, param) for old, param in zip(before, params, strict=True))
    outcome["finite"] = all(bool(torch.isfinite(param).all()) for param in params)
    outcome["stage"] = "schedule"
    if schedule is not None:
        module, _, name = schedule[0].rpartition(".")
        make = getattr(import_module(module), name)
        is_one = isinstance(make, type) and issubclass(make, torch.optim.lr_scheduler.LRScheduler)
        if not is_one and module not in _FUNCTIONS:
            outcome |= {"stage": "schedule class", "message": f"a {type(make).__name__}"}
            return
        scheduler = make(optimizer, **schedule[1])
        for _ in range(2):
            scheduler.step()
    outcome["stage"] = "done"


def _near(path: str, short: bool) -> list[str]:
    """Names that could have been meant: of the same module, and of everything that has a short name."""
    module, _, name = path.rpartition(".")
    names: list[str] = []
    with contextlib.suppress(*MISTAKES):
        names = [each for each, member in vars(import_module(module)).items() if isinstance(member, type)
                 and issubclass(member, torch.optim.Optimizer)]  # fmt: skip
    if short:
        names += [*SD_SCRIPTS.names, *(entry.name for entry in optimizer_names.entries())]
    return nearest(name, names)


class _Said(logging.Handler):
    """Takes down the warnings that our optimizers log about arguments."""

    def __init__(self, lines: list[str]):
        super().__init__(logging.WARNING)
        self.lines = lines

    def __enter__(self) -> None:
        logging.getLogger("hina_kohya").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("hina_kohya").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
