"""What network modules read out of `network_args`, and what a dataset config may hold: read off their source."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.syntax import constant, functions, keys, tree, value

_CREATORS = ("create_network", "create_network_from_weights")


def networks_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every network module of sd-scripts' `networks` folder."""
    made = {f"networks.{path.stem}": network_of(path) for path in sorted(folder.glob("*.py"))}
    return {name: facts for name, facts in made.items() if facts}


def network_of(path: Path) -> dict[str, Any] | None:
    """`reads`: names looked for in **kwargs; `taken`: parameters that the trainer fills in. None: no network module."""
    known = functions(path)
    if "create_network" not in known:
        return None
    reads = {name for creator in _CREATORS if creator in known for name in _names_read(known[creator], known)}
    return {"reads": sorted(reads), "taken": [each.arg for each in known["create_network"].args.args]}


def lycoris_of(package: Path) -> dict[str, Any]:
    """The same for `lycoris.kohya` of an installed LyCORIS, with its algorithms."""
    facts = network_of(package / "kohya.py")
    if facts is None:
        raise UserError(f"{package / 'kohya.py'} has no create_network; reinstall lycoris-lora")
    renamed = keys(constant(package / "wrapper.py", "deprecated_arg_dict"))
    algorithms = keys(constant(package / "wrapper.py", "network_module_dict"))
    return {**facts, "reads": sorted({*facts["reads"], *renamed}), "algorithms": algorithms}


def dataset_tables(checkout: Path) -> dict[str, dict[str, str]]:
    """The tables of library/config_util.py: which keys, of which type; `!` marks a required one."""
    path = checkout / "library" / "config_util.py"
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == "ConfigSanitizer":
            assigned = [each for each in node.body if isinstance(each, ast.Assign) and isinstance(each.value, ast.Dict)]
            return {ast.unparse(each.targets[0]).lower(): _table(each.value) for each in assigned}  # type: ignore[arg-type]
    raise UserError(f"{path} has no ConfigSanitizer; is {checkout} a checkout of sd-scripts?")


def _names_read(function: ast.FunctionDef, known: Mapping[str, ast.FunctionDef], variable: str = "") -> Iterator[str]:
    """Names got out of a function's **kwargs, there or in a function of the same module that is handed them."""
    variable = variable or (function.args.kwarg.arg if function.args.kwarg else "")
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == variable:
            yield from _text(node.slice)
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in (f"{variable}.get", f"{variable}.pop"):
            yield from _text(node.args[0])
        called = known.get(ast.unparse(node.func))
        handed = [position for position, each in enumerate(node.args) if ast.unparse(each) == variable]
        if called is not None and handed:
            yield from _names_read(called, known, called.args.args[handed[0]].arg)


def _text(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _table(table: ast.Dict) -> dict[str, str]:
    found = {}
    for key, each in zip(table.keys, table.values, strict=True):
        required = isinstance(key, ast.Call)
        name = value(key.args[0] if isinstance(key, ast.Call) else key)
        found[str(name)] = _kind(each) + "!" * required
    return found


def _kind(node: ast.expr) -> str:
    """`int`, `float|int`; for the two converters `pair of float`, `int|pair of int`; a name in plain letters."""
    if not isinstance(node, ast.Call):
        return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)
    words = [ast.unparse(each) for each in node.args]
    if "twodim" in words[0]:
        return f"{words[1]}|pair of {words[1]}" if "scalar" in words[0] else f"pair of {words[1]}"
    return "|".join(words)
