"""The optimizer that a configuration asks for: how the trainer or the hooks will find it, and what it is told."""

import ast
import dataclasses as dc
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from hina_kohya.trainers import optimizer_args, optimizer_names
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

OPTION = "optimizer_args"


@dc.dataclass(frozen=True)
class Optimizer:
    """One `--optimizer_type` with its `--optimizer_args`.

    type      : as sd-scripts takes it
    path      : where the class is; for a short name of the entry points, its dotted path
    registered: in the entry points: where the hooks are active they find it, and its arguments are forgiven
    clash     : why a registered name cannot be taken: two packages claim it
    arguments : those that can be read; refused: (word, why, the word to type) of the others; repeats: names given again
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
    repeats: tuple[str, ...] = ()

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
        return self.lower in self.trainer.optimizers.paths

    @property
    def sets_lr(self) -> bool:
        """Whether the trainer leaves the learning rate to it: Adafactor with relative steps."""
        return self.is_own and self.trainer.optimizers.making(self.type, self.arguments, 1.0).lr is None

    @property
    def is_hina(self) -> bool:
        return self.path.startswith("hina_kohya.")

    @property
    def finds_lr(self) -> bool:
        """Whether it finds the learning rate itself and multiplies it by the one that is given, 1 as a rule."""
        if self.is_hina:
            return bool(self.arguments.get("use_auto_lr", self.last == "HinaAuto"))
        return self.is_own and self.lower.startswith(("prodigy", "dadapt"))


def optimizer_of(optimizer_type: str | None, words: Any, hooked: bool, trainer: Trainer = SD_SCRIPTS) -> Optimizer:
    name = (optimizer_type or "").strip() if hooked else optimizer_type or ""
    optimizer = _named(name or "AdamW", trainer)
    optimizer = dc.replace(optimizer, hooked=hooked, words=tuple(words) if isinstance(words, list) else ())
    if optimizer.registered and hooked:
        try:
            return dc.replace(
                optimizer, arguments=optimizer_args.parse(words if isinstance(words, (str, list)) else [])
            )
        except UserError as mistake:
            return dc.replace(optimizer, refused=(("", str(mistake).removeprefix(f"{OPTION}: "), ""),))
    arguments, refusals, repeats = strictly(words if isinstance(words, list) else [])
    return dc.replace(optimizer, arguments=arguments, refused=refusals, repeats=repeats)


def _named(name: str, trainer: Trainer) -> Optimizer:
    if name.lower() in trainer.optimizers.paths:
        return Optimizer(name, trainer.optimizers.paths[name.lower()], trainer)
    if "." in name:
        is_ours = name.startswith("hina_kohya.") or name in map(optimizer_names.path, optimizer_names.entries())
        return Optimizer(name, name, trainer, registered=is_ours)
    try:
        entry = optimizer_names.find(name)
    except UserError as clash:
        return Optimizer(name, "", trainer, registered=True, clash=str(clash))
    path = optimizer_names.path(entry) if entry else f"torch.optim.{name}"
    return Optimizer(name, path, trainer, registered=entry is not None)


def strictly(words: Sequence[Any]) -> tuple[dict[str, Any], tuple[tuple[str, str, str], ...], tuple[str, ...]]:
    """As sd-scripts' get_optimizer does: one `=`, and a Python literal after it."""
    arguments: dict[str, Any] = {}
    refusals, repeats = [], []
    for word in words:
        try:
            name, text = word.split("=")
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, AttributeError) as mistake:
            refusals.append((str(word), str(mistake), _meant(word)))
            continue
        if name != name.strip():
            refusals.append((word, f"the name would be {name!r}, with the space", _meant(word)))
            continue
        repeats += [name] * (name in arguments)
        arguments[name] = value
    return arguments, tuple(refusals), tuple(repeats)


def _meant(word: Any) -> str:
    """The word that says the same to sd-scripts' parser; empty where nobody can tell."""
    try:
        words = [f"{name}={value!r}" for name, value in optimizer_args.parse([str(word)]).items()]
    except UserError:
        return ""
    return words[0] if len(words) == 1 and words[0].count("=") == 1 else ""


def installed(module: str) -> bool:
    """Whether a top-level module can be imported, without importing it."""
    return find_spec(module) is not None
