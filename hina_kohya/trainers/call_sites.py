"""Where a trainer's source makes its optimizer and asks for param groups, and whether the hooks act there.

Read off the source, as data: nothing of theirs is imported. A hook is never taken to act because a file is there or a
name was typed; the trainer has to be seen to call the function that is wrapped.
"""

import ast
import dataclasses as dc
import enum
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.syntax import home_of, imports, module_of, tree
from hina_kohya.trainers.trainer import Trainer

_MAKES = "get_optimizer"
_ASKS = ("prepare_optimizer_params", "prepare_optimizer_params_with_multiple_te_lrs")
_CREATES = ("create_network", "create_arch_network")
_DEEPEST = 6  # modules between a script and what it calls; there are two to four


class Outcome(enum.Enum):
    ACTS = "active"
    CANNOT = "cannot act here"
    NOT_LOOKED_AT = "not looked at"


@dc.dataclass(frozen=True)
class Verdict:
    """Whether the hooks act in one script; `why` names the call, or what is missing, with the trainer's file."""

    outcome: Outcome
    why: str


@dc.dataclass(frozen=True)
class _Module:
    """One file of the checkout, and the name that it is imported by."""

    name: str
    path: Path

    @property
    def file(self) -> str:
        return f"{self.name.replace('.', '/')}.py"


@dc.dataclass(frozen=True)
class _Call:
    """A call in a function (of a class, or "")."""

    module: _Module
    cls: str
    function: str
    node: ast.Call

    @property
    def place(self) -> str:
        return f"{self.module.file}: {self.function}"


def verdict(script: Path, trainer: Trainer, roots: tuple[Path, ...]) -> Verdict:
    """Of one script of a checkout; `roots` are the folders that its imports are looked up in."""
    try:
        chain = _chain(script, roots)
        makes = [call for module in chain for call in _calls(module) if _name(call.node) == _MAKES]
        if not makes:
            what = f"{' and '.join(module.file for module in chain)} call no {_MAKES}"
            return Verdict(Outcome.NOT_LOOKED_AT, f"{what} that could be found")
        return _first([_made(call, script, trainer, roots, _creates(chain)) for call in makes] + _asked(chain, trainer))
    except UserError as mistake:
        return Verdict(Outcome.NOT_LOOKED_AT, str(mistake))


def _first(verdicts: list[Verdict]) -> Verdict:
    """What speaks against it, if anything does."""
    order = (Outcome.CANNOT, Outcome.NOT_LOOKED_AT, Outcome.ACTS)
    return min(verdicts, key=lambda each: order.index(each.outcome))


def _made(call: _Call, script: Path, trainer: Trainer, roots: tuple[Path, ...], creates: bool) -> Verdict:
    home = _home(call, roots)
    if home is None:
        return Verdict(Outcome.NOT_LOOKED_AT, f"{call.place} calls {ast.unparse(call.node.func)}, which was not found")
    module, name = home
    path = f"{module.name}:{name}"
    if path not in trainer.get_optimizer:
        what = f"{call.place} calls {name} of {module.file}, which hina-kohya has never seen"
        return Verdict(Outcome.CANNOT, what)
    if module.path == script and not creates:
        what = f"{call.place} calls {name} of the script itself, which comes into being after the hooks"
        return Verdict(Outcome.CANNOT, what)
    where = "" if module == call.module else f" of {module.file}"
    return Verdict(Outcome.ACTS, f"{call.place} calls {name}{where}")


def _asked(chain: list[_Module], trainer: Trainer) -> list[Verdict]:
    """What speaks against answering the calls for param groups, where a network is created."""
    if not _creates(chain):
        return []
    forms = [(call.positional, call.keywords) for call in trainer.groups_calls]
    asks = [call for module in chain for call in _calls(module) if _name(call.node) in _ASKS]
    if not asks:
        what = f"{chain[-1].file} creates a network, and no call of {_ASKS[0]} was found"
        return [Verdict(Outcome.NOT_LOOKED_AT, what)]
    return [
        Verdict(Outcome.CANNOT, f"{call.place} asks for param groups by {ast.unparse(call.node)}, which is not known")
        for call in asks
        if (len(call.node.args), {word.arg for word in call.node.keywords}) not in forms
    ]


def _creates(chain: list[_Module]) -> bool:
    """Whether a network is created, when all that the script defines is there."""
    return any(_name(call.node) in _CREATES for module in chain for call in _calls(module))


def _chain(script: Path, roots: tuple[Path, ...]) -> list[_Module]:
    """The script, and the modules that trainers inherit from or begin in: those with "train" in their names."""
    chain = [_Module(_module_name(script, roots), script)]
    for module in chain:
        for dotted in sorted(set(imports(module.path, module.name).values())):
            other = _find(dotted, roots)
            name = "" if other is None else other.name.rpartition(".")[2]
            if other is not None and other not in chain and "train" in name and name != "train_util":
                chain.append(other)
        if len(chain) > _DEEPEST:
            break
    return chain


def _module_name(path: Path, roots: tuple[Path, ...]) -> str:
    for root in roots:
        if path.is_relative_to(root):
            return ".".join(path.relative_to(root).with_suffix("").parts)
    return path.stem


def _find(dotted: str, roots: tuple[Path, ...]) -> _Module | None:
    home = module_of(dotted, roots)
    return None if home is None else _Module(*home)


@lru_cache(maxsize=64)
def _calls(module: _Module) -> tuple[_Call, ...]:
    return tuple(_calls_in(module, tree(module.path).body, "", ""))


def _calls_in(module: _Module, body: list[ast.stmt], cls: str, function: str) -> Iterator[_Call]:
    for statement in body:
        if isinstance(statement, ast.ClassDef):
            yield from _calls_in(module, statement.body, statement.name, function)
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    yield _Call(module, cls, function or statement.name, node)


def _name(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


def _home(call: _Call, roots: tuple[Path, ...]) -> tuple[_Module, str] | None:
    """The module that defines the function which is called, and its name there: `function` or `Class.method`."""
    first, _, rest = ast.unparse(call.node.func).partition(".")
    if first == "self":
        return _method(call.module, call.cls, rest, roots)
    dotted = imports(call.module.path, call.module.name).get(first, f"{call.module.name}.{first}")
    home = home_of(dotted + f".{rest}" * bool(rest), roots)
    return None if home is None else (_Module(*home[:2]), home[2])


def _method(module: _Module, cls: str, name: str, roots: tuple[Path, ...]) -> tuple[_Module, str] | None:
    """The class of the line of ancestors that defines a method."""
    for _ in range(_DEEPEST):
        classes = {node.name: node for node in tree(module.path).body if isinstance(node, ast.ClassDef)}
        definition = classes.get(cls)
        if definition is None:
            dotted = imports(module.path, module.name).get(cls, "")
            parent = _find(dotted, roots)
            if parent is None:
                return None
            module, cls = parent, dotted.rpartition(".")[2]
            continue
        if any(isinstance(node, ast.FunctionDef) and node.name == name for node in definition.body):
            return module, f"{cls}.{name}"
        if not definition.bases:
            return None
        base = ast.unparse(definition.bases[0])
        first, _, rest = base.partition(".")
        if rest:  # train_network.NetworkTrainer
            parent = _find(imports(module.path, module.name).get(first, ""), roots)
            if parent is None:
                return None
            module, cls = parent, rest
        else:
            cls = base
    return None
