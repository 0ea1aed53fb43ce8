"""The optimizer that a configuration asks for: how the trainer or the hooks will find it, and what it is told."""

import ast
import contextlib
import dataclasses as dc
import io
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from hina_kohya.trainers import optimizer_args, optimizer_names
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

OPTION = "optimizer_args"
_ADDED = {"sgdnesterov": {"momentum": 0.9, "nesterov": True}, "sgdnesterov8bit": {"momentum": 0.9, "nesterov": True}}
# What can go wrong when somebody else's class is imported and made.
MISTAKES = (ImportError, AttributeError, TypeError, ValueError, KeyError, RuntimeError, AssertionError, IndexError)


@dc.dataclass(frozen=True)
class Optimizer:
    """One `--optimizer_type` with its `--optimizer_args`.

    type      : as sd-scripts takes it
    path      : where the class is; for a short name of the entry points, its dotted path
    registered: in the entry points: where the hooks are active they find it, and its arguments are forgiven
    clash     : why a registered name cannot be taken: two packages claim it
    arguments : those that can be read; refused: (word, why, the word to type) of the others; twice: names given again
    """

    type: str
    path: str
    trainer: Trainer = SD_SCRIPTS
    registered: bool = False
    clash: str = ""
    hooked: bool = False
    words: tuple[Any, ...] = ()
    arguments: Mapping[str, Any] = dc.field(default_factory=dict)
    refused: tuple[tuple[str, str, str], ...] = ()
    twice: tuple[str, ...] = ()

    @property
    def lower(self) -> str:
        return self.type.lower()

    @property
    def last(self) -> str:
        """The class's own name."""
        return self.type.rpartition(".")[2]

    @property
    def is_own(self) -> bool:
        """One of the names that sd-scripts spells out."""
        return self.lower in self.trainer.optimizer_paths

    def is_one_of(self, *paths: str) -> bool:
        return self.path in paths

    def load(self) -> Any:
        """The class. Raises what importing it raises."""
        module, _, name = self.path.rpartition(".")
        return getattr(import_module(module), name)

    def rehearse(self, cls: Any, lr: float | None) -> Any:
        """The class made on one small matrix, with the arguments that sd-scripts adds for its own names."""
        import torch  # noqa: PLC0415 (only where a class is inspected)

        added, arguments = dict(_ADDED.get(self.lower, {})), dict(self.arguments)
        if self.lower == "adafactor" and arguments.get("relative_step", True):
            lr = None  # as get_optimizer does
        group = {"params": [torch.nn.Parameter(torch.zeros(8, 8))]} | ({} if lr is None else {"lr": lr})
        with contextlib.redirect_stdout(io.StringIO()):
            return cls([group], lr=lr, **{**added, **arguments})

    def is_torch(self, made: Any) -> bool:
        import torch  # noqa: PLC0415

        return isinstance(made, torch.optim.Optimizer)

    def reload(self, made: Any) -> None:
        """As accelerate does when it wraps an optimizer."""
        if self.is_torch(made):
            made.load_state_dict(made.state_dict())


def optimizer_of(given: str | None, words: Any, hooked: bool, trainer: Trainer = SD_SCRIPTS) -> Optimizer:
    name = (given or "").strip() if hooked else given or ""
    known = _named(name or "AdamW", trainer)
    known = dc.replace(known, hooked=hooked, words=tuple(words) if isinstance(words, list) else ())
    if known.registered and hooked:
        try:
            return dc.replace(known, arguments=optimizer_args.parse(words if isinstance(words, (str, list)) else []))
        except UserError as mistake:
            return dc.replace(known, refused=(("", str(mistake).removeprefix(f"{OPTION}: "), ""),))
    read, refused, twice = strictly(words if isinstance(words, list) else [])
    return dc.replace(known, arguments=read, refused=refused, twice=twice)


def _named(name: str, trainer: Trainer) -> Optimizer:
    if name.lower() in trainer.optimizer_paths:
        return Optimizer(name, trainer.optimizer_paths[name.lower()], trainer)
    if "." in name:
        ours = name.startswith("hina_kohya.") or name in map(optimizer_names.path, optimizer_names.entries())
        return Optimizer(name, name, trainer, registered=ours)
    try:
        entry = optimizer_names.find(name)
    except UserError as clash:
        return Optimizer(name, "", trainer, registered=True, clash=str(clash))
    path = optimizer_names.path(entry) if entry else f"torch.optim.{name}"
    return Optimizer(name, path, trainer, registered=entry is not None)


def strictly(words: Sequence[Any]) -> tuple[dict[str, Any], tuple[tuple[str, str, str], ...], tuple[str, ...]]:
    """As sd-scripts' get_optimizer does: one `=`, and a Python literal after it."""
    read: dict[str, Any] = {}
    refused, twice = [], []
    for word in words:
        try:
            name, text = word.split("=")
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, AttributeError) as mistake:
            refused.append((str(word), str(mistake), _meant(word)))
            continue
        if name != name.strip():
            refused.append((word, f"the name would be {name!r}, with the space", _meant(word)))
            continue
        twice += [name] * (name in read)
        read[name] = value
    return read, tuple(refused), tuple(twice)


def _meant(word: Any) -> str:
    """The word that says the same to sd-scripts' parser; empty where nobody can tell."""
    try:
        meant = [f"{name}={value!r}" for name, value in optimizer_args.parse([str(word)]).items()]
    except UserError:
        return ""
    return meant[0] if len(meant) == 1 and meant[0].count("=") == 1 else ""


def namesakes(optimizer: Optimizer) -> list[str]:
    """Names that could have been meant: of the same module, or of everything that has a short name."""
    module = optimizer.path.rpartition(".")[0]
    try:
        there = [name for name, thing in vars(import_module(module)).items() if isinstance(thing, type)]
    except ImportError:
        return []
    short = (
        []
        if "." in optimizer.type
        else [*optimizer.trainer.optimizer_names, *(entry.name for entry in optimizer_names.entries())]
    )
    return [*there, *short]


def installed(module: str) -> bool:
    """Whether a top-level module can be imported, without importing it."""
    return find_spec(module) is not None
