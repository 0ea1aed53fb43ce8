"""Reading other people's Python source as data: nothing of theirs is imported or run."""

import ast
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hina_kohya.trainers.errors import UserError

UNKNOWN = object()
_DEEPEST = 6  # modules that hand a name on


@lru_cache(maxsize=64)
def tree(path: Path) -> ast.Module:
    """Raises UserError for a file that is not there or is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a newer Python warns about escapes in their strings
            return ast.parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {each.name: each for each in tree(path).body if isinstance(each, ast.FunctionDef)}


def value(node: ast.expr | None) -> Any:
    """What is written out; None for nothing, UNKNOWN for what only running would tell."""
    if node is None:
        return None
    try:
        return ast.literal_eval(node)
    except ValueError:
        return UNKNOWN


def constant(path: Path, name: str) -> ast.expr | None:
    """The expression that a module assigns to a name."""
    for node in tree(path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(each, ast.Name) and each.id == name for each in targets):
            return node.value  # type: ignore[union-attr]
    return None


def keys(table: ast.expr | None) -> list[str]:
    """The keys of a dict that is written out, whatever its values are."""
    found = table.keys if isinstance(table, ast.Dict) else []
    return [each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def module_of(dotted: str, roots: Sequence[Path]) -> tuple[str, Path] | None:
    """The module that a dotted path is, or is within: its name, and its file in one of `roots`."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        for root in roots:
            path = root.joinpath(*parts[:length]).with_suffix(".py")
            if path.is_file():
                return ".".join(parts[:length]), path
    return None


def home_of(dotted: str, roots: Sequence[Path]) -> tuple[str, Path, str] | None:
    """The module that defines a function, its file, and the function's name, through re-exports; None if not found."""
    for _ in range(_DEEPEST):
        home = module_of(dotted, roots)
        name = "" if home is None else dotted.removeprefix(f"{home[0]}.")
        if home is None or "." in name or name == dotted:
            return None
        module, path = home
        if name in functions(path):
            return module, path, name
        dotted = imports(path, module).get(name, "")
    return None


@lru_cache(maxsize=64)
def imports(path: Path, module: str) -> dict[str, str]:
    """Names that a module imports, anywhere in it, with the dotted path each stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for each in node.names:
                first = each.name.partition(".")[0]
                found[each.asname or first] = each.name if each.asname else first
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            package = ".".join([*above, *filter(None, [node.module])])
            found |= {each.asname or each.name: f"{package}.{each.name}" for each in node.names}
    return found
