"""What network modules read out of `network_args`, and what a dataset config may hold: read off their source."""

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hina_kohya.trainers.checkouts import Checkout
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.syntax import constant, functions, home_of, imports, keys, module_of, tree, value

_CREATORS = ("create_arch_network", "create_network", "create_network_from_weights")
_SHORT = "networks"  # as `--network_module` names the package


def networks_of(checkout: Checkout) -> dict[str, dict[str, Any]]:
    """Every network module of a trainer, by the name that is typed."""
    names = [f"{_SHORT}.{path.stem}" for path in sorted(_folder(checkout).glob("*.py"))]
    networks = {name: network_facts(checkout, name) for name in names}
    return {name: facts for name, facts in networks.items() if facts}


def network_facts(checkout: Checkout, module: str) -> dict[str, Any] | None:
    """The facts of one module by the name that is typed, or None."""
    package = checkout.trainer.network_package
    dotted = f"{package}.{module.partition('.')[2]}" if module.startswith(f"{_SHORT}.") else module
    home = module_of(dotted, checkout.import_roots)
    return None if home is None or home[0] != dotted else network_of(home[1], dotted, checkout.import_roots)


def _folder(checkout: Checkout) -> Path:
    roots = [root.joinpath(*checkout.trainer.network_package.split(".")) for root in checkout.import_roots]
    return next((root for root in roots if root.is_dir()), roots[0])


def network_of(path: Path, module: str, roots: Sequence[Path] = ()) -> dict[str, Any] | None:
    """`reads`: names looked for in **kwargs; `taken`: parameters that the trainer fills in. None: no network module."""
    definitions = functions(path)
    creators = [creator for creator in _CREATORS if creator in definitions]
    if not creators or creators[0] == _CREATORS[2]:
        return None
    reads = {name for creator in creators for name in _names_read(definitions[creator], path, module, roots)}
    parameters = [each.arg for each in definitions[creators[0]].args.args]
    return {"reads": sorted(reads), "taken": parameters}


@lru_cache(maxsize=8)
def lycoris_of(package: Path) -> dict[str, Any]:
    """The same for `lycoris.kohya` of an installed LyCORIS, with its algorithms."""
    facts = network_of(package / "kohya.py", "lycoris.kohya")
    if facts is None:
        raise UserError(f"{package / 'kohya.py'} has no create_network; reinstall lycoris-lora")
    aliases = keys(constant(package / "wrapper.py", "deprecated_arg_dict"))
    algorithms = keys(constant(package / "wrapper.py", "network_module_dict"))
    return {**facts, "reads": sorted({*facts["reads"], *aliases}), "algorithms": algorithms}


def has_dataset_tables(checkout: Checkout) -> bool:
    return _dataset_module(checkout) is not None


def dataset_tables(checkout: Checkout) -> dict[str, dict[str, str]]:
    """The tables of its dataset config: which keys, of which type; `!` marks a required one."""
    path = _dataset_module(checkout)
    if path is None:
        raise UserError(f"{checkout.root} has no {checkout.trainer.dataset_module}")
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef) and node.name == "ConfigSanitizer":
            tables = [each for each in node.body if isinstance(each, ast.Assign) and isinstance(each.value, ast.Dict)]
            return {ast.unparse(each.targets[0]).lower(): _table(each.value) for each in tables}  # type: ignore[arg-type]
    raise UserError(f"{path} has no ConfigSanitizer; is {checkout.root} a checkout of {checkout.trainer.name}?")


def _dataset_module(checkout: Checkout) -> Path | None:
    home = module_of(checkout.trainer.dataset_module, checkout.import_roots)
    return home[1] if home is not None and home[0] == checkout.trainer.dataset_module else None


def _names_read(
    function: ast.FunctionDef, path: Path, module: str, roots: Sequence[Path], variable: str = ""
) -> Iterator[str]:
    """Names got out of a function's **kwargs, there or in a function that is handed them."""
    variable = variable or (function.args.kwarg.arg if function.args.kwarg else "")
    for node in ast.walk(function):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == variable:
            yield from _text(node.slice)
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func) in (f"{variable}.get", f"{variable}.pop"):
            yield from _text(node.args[0])
        is_unpacked = any(word.arg is None and ast.unparse(word.value) == variable for word in node.keywords)
        positions = [position for position, each in enumerate(node.args) if ast.unparse(each) == variable]
        callee = _called(ast.unparse(node.func), path, module, roots) if is_unpacked or positions else None
        if callee is not None and callee[0] is not function:
            yield from _names_read(*callee, roots, "" if is_unpacked else callee[0].args.args[positions[0]].arg)


def _called(name: str, path: Path, module: str, roots: Sequence[Path]) -> tuple[ast.FunctionDef, Path, str] | None:
    """A function by the name that a module calls it, and where it is defined."""
    if name in (definitions := functions(path)):
        return definitions[name], path, module
    first, _, rest = name.partition(".")
    dotted = imports(path, module).get(first, "") + f".{rest}" * bool(rest)
    home = home_of(dotted, roots) if dotted else None
    return None if home is None else (functions(home[1])[home[2]], home[1], home[0])


def _text(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _table(table: ast.Dict) -> dict[str, str]:
    types = {}
    for key, each in zip(table.keys, table.values, strict=True):
        is_required = isinstance(key, ast.Call)
        name = value(key.args[0] if isinstance(key, ast.Call) else key)
        types[str(name)] = _kind(each) + "!" * is_required
    return types


def _kind(node: ast.expr) -> str:
    """`int`, `float|int`; for the two converters `pair of float`, `int|pair of int`; a name in plain letters."""
    if not isinstance(node, ast.Call):
        return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)
    words = [ast.unparse(each) for each in node.args]
    if "twodim" in words[0]:
        return f"{words[1]}|pair of {words[1]}" if "scalar" in words[0] else f"pair of {words[1]}"
    return "|".join(words)
