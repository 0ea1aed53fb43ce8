"""The options of the trainers, read off the source of their parsers."""

import ast
import copy
import dataclasses as dc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hina_kohya.trainers.checkouts import Checkout
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.syntax import UNKNOWN, functions, home_of, imports, module_of, value

COMMON = "*"
_TYPES = {
    "int": "int", "float": "float", "str": "str", "Path": "str", "pathlib.Path": "str", "int_or_float": "steps",
    "_int_or_float": "steps",
}  # fmt: skip
_FLAGS = {"store_true": False, "store_false": True}
# What makes a parser: sd-scripts' scripts have the first, musubi-tuner's the second, which calls others.
_BEGINNINGS = ("setup_parser", "main")


def options_of_trainers(checkout: Checkout) -> dict[str, dict[str, Any]]:
    """The options of every script that trains adapters, by name; what all of them have stands under "*"."""
    by_script = {path.name: options_of(checkout, path.name) for path in checkout.scripts}
    first, *others = by_script.values()
    common = {name: facts for name, facts in first.items() if all(each.get(name) == facts for each in others)}
    own = {
        script: {name: facts for name, facts in options.items() if name not in common}
        for script, options in by_script.items()
    }
    return {COMMON: common, **own}


def options_of(checkout: Checkout, script: str) -> dict[str, Any]:
    """Each option as few words: `type`, and where they say something `list`, `choices`, `default`, `flags`."""
    path = checkout.script(script)
    if path is None:
        raise UserError(f"there is no {script} in {checkout.root}")
    name = ".".join(next(path.relative_to(root) for root in checkout.import_roots if path.is_relative_to(root)).parts)
    beginning = next((each for each in _BEGINNINGS if each in functions(path)), "")
    calls = _Parser(checkout).calls(name.removesuffix(".py"), beginning, {})
    return dict(_option(call, checkout.root) for call in calls)


@dc.dataclass(frozen=True)
class _Parser:
    """Follows a parser through the functions that make it and that it is handed to."""

    checkout: Checkout

    def calls(self, module: str, function: str, given: Mapping[str, Any]) -> Iterator[ast.Call]:
        home = home_of(f"{module}.{function}", self.checkout.import_roots)
        if home is None:
            place = module_of(module, self.checkout.import_roots)
            raise UserError(
                f"{place[1] if place else module} has no {function}; is {self.checkout.root} a checkout of "
                f"{self.checkout.trainer.name}?"
            )
        module, path, function = home
        definition = functions(path)[function]
        yield from self._of(definition.body, module, imports(path, module), _bound(definition.args, given))

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
        if "setup_parser" in function or any(ast.unparse(each) == "parser" for each in call.args):
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
