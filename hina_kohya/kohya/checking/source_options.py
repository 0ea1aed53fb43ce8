"""The options of sd-scripts' trainers, read off the source of their parsers."""

import ast
import copy
import dataclasses as dc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.syntax import UNKNOWN, functions, imports, value

TRAINER = "train_network.py"
_TYPES = {"int": "int", "float": "float", "str": "str", "Path": "str", "int_or_float": "steps"}
_FLAGS = {"store_true": False, "store_false": True}


def options_of_trainers(checkout: Path) -> dict[str, dict[str, Any]]:
    """For every `*train_network.py`, its options by name; those that all of them have only with `train_network.py`."""
    common = options_of(checkout, TRAINER)
    others = {path.name: options_of(checkout, path.name) for path in sorted(checkout.glob(f"*_{TRAINER}"))}
    own = {name: {key: each for key, each in found.items() if key not in common} for name, found in others.items()}
    return {TRAINER: common, **own}


def options_of(checkout: Path, script: str) -> dict[str, Any]:
    """Each option as few words: `type`, and where they say something `list`, `choices`, `default`, `flags`."""
    calls = _Parser(checkout).calls(script.removesuffix(".py"), "setup_parser", {})
    return dict(_option(call, checkout) for call in calls)


@dc.dataclass(frozen=True)
class _Parser:
    """Follows `setup_parser` through the functions that it hands its parser to."""

    checkout: Path

    def calls(self, module: str, function: str, given: Mapping[str, Any]) -> Iterator[ast.Call]:
        path = self.checkout / (module.replace(".", "/") + ".py")
        if function not in (known := functions(path)):
            raise UserError(f"{path} has no {function}; is {self.checkout} a checkout of sd-scripts?")
        bound = _bound(known[function].args, given)
        yield from self._of(known[function].body, module, imports(path, module), bound)

    def _of(
        self, body: list[ast.stmt], module: str, imported: Mapping[str, str], bound: Mapping[str, Any]
    ) -> Iterator[ast.Call]:
        for statement in body:
            if isinstance(statement, ast.If):
                met = bound.get(ast.unparse(statement.test), True)
                yield from self._of(statement.body if met else statement.orelse, module, imported, bound)
            elif isinstance(statement, ast.For):
                for each in _turns(statement):
                    yield from self._of(each, module, imported, bound)
            elif not isinstance(statement, ast.FunctionDef):
                for call in (node for node in ast.walk(statement) if isinstance(node, ast.Call)):
                    yield from self._called(call, module, imported)

    def _called(self, call: ast.Call, module: str, imported: Mapping[str, str]) -> Iterator[ast.Call]:
        target = ast.unparse(call.func)
        if target.endswith(".add_argument"):
            yield call
            return
        first, _, rest = target.partition(".")
        dotted = imported.get(first, f"{module}.{first}") + f".{rest}" * bool(rest)
        where, _, function = dotted.rpartition(".")
        if function == "setup_parser" or any(ast.unparse(each) == "parser" for each in call.args):
            positional = {str(position): value(each) for position, each in enumerate(call.args)}
            yield from self.calls(
                where, function, {**positional, **{each.arg or "": value(each.value) for each in call.keywords}}
            )


def _bound(arguments: ast.arguments, given: Mapping[str, Any]) -> dict[str, Any]:
    """A function's parameters by name: its defaults, then what a call gives by position or by name."""
    names = [each.arg for each in arguments.args]
    defaults = dict(zip(names[::-1], map(value, arguments.defaults[::-1]), strict=False))
    return {**defaults, **{names[int(key)] if key.isdigit() else key: each for key, each in given.items()}}


def _turns(loop: ast.For) -> Iterator[list[ast.stmt]]:
    """The body of a loop over what is written out, once for each turn, with the value in the place of the variable."""
    turns = value(loop.iter)
    if not isinstance(loop.target, ast.Name) or not isinstance(turns, (list, tuple)):
        yield loop.body
        return
    for each in turns:
        put = _Put(loop.target.id, each)
        yield [put.visit(copy.deepcopy(statement)) for statement in loop.body]


class _Put(ast.NodeTransformer):
    def __init__(self, name: str, constant: Any):
        self.name, self.constant = name, constant

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.copy_location(ast.Constant(self.constant), node) if node.id == self.name else node


def _option(call: ast.Call, checkout: Path) -> tuple[str, dict[str, Any]]:
    given = {each.arg: each.value for each in call.keywords if each.arg}
    flags = [str(value(each)) for each in call.args]
    long = [each for each in flags if each.startswith("--")]
    if not long:
        raise UserError(
            f"an option of {checkout} is computed when it runs, and cannot be read: {ast.unparse(call)[:80]}"
        )
    name = long[0][2:].replace("-", "_")
    action = value(given.get("action"))
    kind = ast.unparse(given["type"]) if "type" in given else "str"
    option: dict[str, Any] = {"type": "flag" if action in _FLAGS else _TYPES.get(kind, "str")}
    if "nargs" in given:
        option["list"] = True
    if isinstance(choices := value(given.get("choices")), list):
        option["choices"] = choices
    default = value(given.get("default", ast.Constant(_FLAGS.get(action))))
    if default is not None and default is not False and default is not UNKNOWN:
        option["default"] = default
    if flags != [f"--{name}"]:
        option["flags"] = flags
    return name, option
