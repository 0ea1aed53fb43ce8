"""Which options a trainer reads while it trains, followed through its source: what no path reaches is never read.

Reads for metadata, checks and preview images do not count: they change nothing that is trained.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from hina_kohya.trainers.checkouts import Checkout
from hina_kohya.trainers.syntax import functions, home_of, imports, module_of, tree

_NOT_TRAINING = (
    "metadata",
    "verify_",
    "sai_model_spec",
    "sample_images",
    "assert_",
    "setup_parser",
    "add_",
    "debug_dataset",
)
_ARGS = ("args", "self.args")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def never_read(checkout: Checkout) -> dict[str, list[str]]:
    """script -> options that another script of the family reads, and this one does not."""
    by_script = {path.name: reads(checkout, path) for path in checkout.scripts}
    union = set().union(*by_script.values())
    sampling = {name for name in union if name.startswith("sample_")}  # read where previews are drawn
    return {script: sorted(union - own - sampling) for script, own in by_script.items()}


def reads(checkout: Checkout, script: Path) -> set[str]:
    """Options that a path from the trainer's `train` reads."""
    root = next(root for root in checkout.import_roots if script.is_relative_to(root))
    module = ".".join(script.relative_to(root).with_suffix("").parts)
    trainer = next(
        (
            node.name
            for node in tree(script).body
            if isinstance(node, ast.ClassDef) and node.name.endswith("NetworkTrainer")
        ),
        "",
    )
    walk = _Walk(checkout, _lineage(checkout, module, script, trainer))
    walk.method("train")
    return walk.options


def _lineage(checkout: Checkout, module: str, path: Path, name: str) -> list[tuple[str, Path, ast.ClassDef]]:
    """A class and what it derives from, the nearest first."""
    lineage = []
    while True:
        node = next((each for each in tree(path).body if isinstance(each, ast.ClassDef) and each.name == name), None)
        if node is None:  # it may be imported here
            home = module_of(imports(path, module).get(name, ""), checkout.import_roots)
            if home is None or home[1] == path:
                return lineage
            module, path = home
            continue
        lineage.append((module, path, node))
        if not node.bases:
            return lineage
        base = ast.unparse(node.bases[0])
        first, _, rest = base.partition(".")
        dotted = imports(path, module).get(first, f"{module}.{first}") + f".{rest}" * bool(rest)
        home = module_of(dotted, checkout.import_roots)
        if home is None:
            return lineage
        (module, path), name = home, dotted.rpartition(".")[2]


class _Walk:
    def __init__(self, checkout: Checkout, lineage: list[tuple[str, Path, ast.ClassDef]]):
        self.checkout, self.lineage = checkout, lineage
        self.options: set[str] = set()
        self._seen: set[int] = set()

    def method(self, name: str, after: int = -1) -> None:
        """Follows a method of the trainer, as found from the class after this place in its lineage."""
        for place, (module, path, node) in enumerate(self.lineage):
            definition = next((each for each in node.body if isinstance(each, _Function) and each.name == name), None)
            if definition is not None and place > after:
                self._follow(definition, module, path, place)
                return

    def _follow(self, definition: _Function, module: str, path: Path, place: int) -> None:
        if id(definition) in self._seen or any(each in definition.name for each in _NOT_TRAINING):
            return
        self._seen.add(id(definition))
        for node in _training(definition):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and ast.unparse(node.value) in _ARGS:
                self.options.add(node.attr)
            elif isinstance(node, ast.Call):
                self.options |= {*_by_getattr(node)}
                self._call(ast.unparse(node.func), module, path, place)

    def _call(self, target: str, module: str, path: Path, place: int) -> None:
        if target.startswith("self."):
            self.method(target.removeprefix("self."))
        elif target.startswith("super()."):
            self.method(target.removeprefix("super()."), place)
        else:
            first, _, rest = target.partition(".")
            dotted = imports(path, module).get(first, f"{module}.{first}") + f".{rest}" * bool(rest)
            home = home_of(dotted, self.checkout.import_roots)
            if home is not None:
                self._follow(functions(home[1])[home[2]], home[0], home[1], place)


def _training(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all in it, without dicts of metadata, whose keys begin with `ss_`."""
    if isinstance(node, ast.Dict) and any(
        isinstance(key, ast.Constant) and str(key.value).startswith("ss_") for key in node.keys
    ):
        return
    yield node
    for each in ast.iter_child_nodes(node):
        yield from _training(each)


def _by_getattr(call: ast.Call) -> Iterator[str]:
    """`getattr(args, "name", ...)`"""
    if (
        ast.unparse(call.func) == "getattr"
        and ast.unparse(call.args[0]) in _ARGS
        and isinstance(call.args[1], ast.Constant)
    ):
        yield str(call.args[1].value)
