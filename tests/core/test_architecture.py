"""The rules of the tree that a reader should be able to rely on, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "hina_kohya"
FLOORS = {
    "files": 0,
    "text": 0,
    "numerics": 0,
    "parameters": 1,
    "core": 2,
    "techniques": 3,
    "discovery": 3,
    "optim": 4,
    "loras": 4,
    "trainers": 5,
    "adlrns": 6,
    "launch": 6,
    "lycoris": 6,
    "network": 6,
    "kohya": 6,
    "patch": 6,
    "check": 7,
    "watch": 7,
    "demo": 8,
    "profile": 8,
    "cli": 9,
}
FILES = sorted(PACKAGE.rglob("*.py"))
PURE = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in ("numerics", "techniques")]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(path.relative_to(PACKAGE.parent).parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (above, node.module)))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def floor(dotted):
    parts = dotted.split(".")
    return FLOORS.get(parts[1]) if parts[0] == "hina_kohya" and len(parts) > 1 else None


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below(path):
    relative = path.relative_to(PACKAGE)
    own = FLOORS.get(relative.parts[0].removesuffix(".py"))
    if own is None:
        return
    for name in imported(path):
        other = floor(name)
        if other is None:
            continue
        same = name.split(".")[1] == relative.parts[0]
        assert other < own or (same and relative.parts[0] != "techniques"), f"{relative} imports {name}"


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.stem)
def test_pure_code_never_waits_for_the_device(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in ("item", "cpu", "tolist", "numpy"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (80 if path.parent.name == "techniques" else 300)


def test_one_class_is_a_torch_optimizer():
    found = [
        f"{path.stem}.{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("torch.optim" in ast.unparse(base) for base in node.bases)
    ]
    assert found == ["optimizer.HinaOptimizer"]


def test_techniques_document_themselves():
    from hina_kohya.core.registry import techniques

    for technique in techniques().values():
        for heading in ("Shapes:" if technique.name != "lora_plus" else "Source:", "Source:", "Differs:", "Cost:"):
            assert heading in (technique.__doc__ or ""), f"{technique.name} lacks {heading}"


def test_importing_the_package_imports_no_torch():
    code = "import sys, hina_kohya; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
