"""The rules of the tree that a reader should be able to rely on, read off the source."""

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import hina_kohya

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hina_kohya"
# The longest name that a module begins with says its floor.
FLOORS = {
    "files": 0,
    "text": 0,
    "numerics": 0,
    "parameters": 1,
    "trainers.facts.timesteps": 1,  # data, which imports nothing: ADLRNS reads it below the trainers
    "core": 2,
    "techniques": 3,
    "discovery": 3,
    "optim": 4,
    "loras": 3,
    "adlrns.adapter": 4,
    "adlrns.layer": 4,
    "adlrns.settings": 4,
    "adlrns.water_level": 4,
    "trainers": 5,
    "adlrns": 6,  # the way in for trainers
    "launch": 6,
    "lycoris": 6,
    "network": 6,
    "kohya": 6,
    "patch": 6,
    "watch": 6,
    "check": 7,
    "demo": 7,
    "calibration.still": 0,
    "calibration": 8,
    "profile": 8,
    "cli": 9,
}
FILES = sorted(PACKAGE.rglob("*.py"))
DOTTED = re.compile(r"hina_kohya(\.\w+)+\.?")  # up to a `{`, with a dot at its end
PURE = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in ("numerics", "techniques")]


def dotted(path):
    """`hina_kohya.core.plan` of hina_kohya/core/plan.py, `hina_kohya.core` of its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(source, module, is_package=False, at_runtime=False):
    """Names that a source imports, also through strings such as those that `import_module` gets.

    A string counts if all of it is a dotted name in this package, or its beginning is before a `{`. The group of entry
    points that is called like a package is none. ``at_runtime``: without what only type checkers import.
    """
    tree = ast.parse(source)
    groups = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "group"}
    unseen = set()
    for node in ast.walk(tree) if at_runtime else ():
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            unseen |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) + is_package - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and id(node) not in groups and DOTTED.fullmatch(str(node.value)):
            yield node.value.removesuffix(".")


def imports_of(path, at_runtime=False):
    source = path.read_text(encoding="utf-8")
    return list(imported(source, dotted(path), path.name == "__init__.py", at_runtime))


def place(name):
    """(room, floor) of a module of the package, or of what is in it; None for everything else, the package included."""
    if name.removeprefix("hina_kohya.") in hina_kohya.OPTIMIZERS:
        return "optim", FLOORS["optim"]
    parts = name.split(".")
    for length in range(len(parts), 1, -1) if parts[0] == "hina_kohya" else ():
        floor = FLOORS.get(".".join(parts[1:length]))
        if floor is not None:
            return parts[1], floor
    return None


def upward(name, source, is_package=False):
    """Imports from floors that are not below the module's own. Within a room all but techniques may import."""
    room, floor = place(name)
    for other in imported(source, name, is_package):
        of_other = place(other)
        if of_other is None or of_other[1] < floor:
            continue
        if of_other == (room, floor) and (room != "techniques" or is_package):
            continue
        yield other


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_floors_below(path):
    if path == PACKAGE / "__init__.py":
        return
    source = path.read_text(encoding="utf-8")
    assert place(dotted(path)), f"{dotted(path)}: give its room a floor"
    assert list(upward(dotted(path), source, path.name == "__init__.py")) == []


def test_every_floor_is_of_a_room_that_is_there():
    modules = {dotted(path).removeprefix("hina_kohya.") for path in FILES}
    assert FLOORS.keys() <= modules


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core.plan", "from hina_kohya.optim.family import Family"),
        ("core.plan", "from hina_kohya import optim"),
        ("core.plan", "from hina_kohya import HinaAdamW"),
        ("core.plan", "def late():\n    import hina_kohya.techniques.adam"),
        ("core.plan", "import_module('hina_kohya.techniques')"),
        ("core.plan", "import_module(f'hina_kohya.techniques.{name}')"),
        ("core.plan", "LATER = {'adam': 'hina_kohya.techniques.adam'}"),
        ("core.state.codec", "from ...optim import family"),
        ("techniques.adam", "from .came import Came"),
        ("techniques.adam", "from hina_kohya.discovery.search import roots"),
        ("adlrns.adapter.states", "from hina_kohya.trainers.trainer import Trainer"),
        ("adlrns.adapter.states", "from hina_kohya.adlrns import network"),
        ("lycoris", "from hina_kohya.network import create_network"),
    ],
)
def test_an_arrow_upward_is_seen(module, line):
    assert list(upward(f"hina_kohya.{module}", line))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("core.plan", "import hina_kohya"),
        ("core.plan", "from . import frames"),
        ("core.plan", "from hina_kohya.numerics.reduce import mat_mean"),
        ("core.registry", "entry_points(group='hina_kohya.techniques')"),
        ("core.plan", "raise ValueError('hina_kohya.optim knows better')"),
        ("adlrns.adapter.states", "from hina_kohya.trainers.facts.timesteps import Timestep"),
        ("adlrns.layer.scheduling", "from hina_kohya.adlrns.water_level import allocate"),
    ],
)
def test_other_imports_are_no_arrows_upward(module, line):
    assert list(upward(f"hina_kohya.{module}", line)) == []


@cache
def modules():
    """Every module of package and benchmarks, with those that it imports at run time, sooner or later."""
    paths = {dotted(path): path for folder in ("hina_kohya", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    lazy = ("hina_kohya", "hina_kohya.adlrns")  # tables of names that nobody in the package asks them for

    def module(name):
        while name and name not in paths:
            name = name.rpartition(".")[0]
        return name

    return {
        name: {module(other) for other in imports_of(path, at_runtime=True)} - {name, ""}
        for name, path in paths.items()
        if name not in lazy
    }


def test_imports_run_in_no_circle():
    graphlib.TopologicalSorter(modules()).prepare()  # names the circle


def test_a_circle_is_seen():
    line = modules()["hina_kohya.core.plan"]
    assert "hina_kohya.core.bucket" in line
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({**modules(), "hina_kohya.core.bucket": {"hina_kohya.core.plan"}}).prepare()


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.stem)
def test_pure_code_never_waits_for_the_device(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in ("item", "cpu", "tolist", "numpy"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_small(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (80 if path.parent.name == "techniques" else 300)


@cache
def classes():
    """(module.name, its bases, lines) of every class of the package."""
    nodes = [(path, node) for path in FILES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [
        (f"{path.stem}.{node.name}", [ast.unparse(base) for base in node.bases], node.end_lineno - node.lineno + 1)
        for path, node in nodes
        if isinstance(node, ast.ClassDef)
    ]


def test_one_class_is_a_torch_optimizer_that_steps():
    torchs = sorted(name for name, bases, _ in classes() if any("torch.optim" in base for base in bases))
    assert torchs == ["group_optimizer.GroupOptimizer", "still.Still"]  # neither takes a step
    assert [name for name, bases, _ in classes() if "GroupOptimizer" in bases] == ["optimizer.HinaOptimizer"]


def test_the_optimizer_is_read_at_one_sitting():
    (lines,) = (lines for name, _, lines in classes() if name == "optimizer.HinaOptimizer")
    assert lines < 150


def test_techniques_document_themselves():
    from hina_kohya.core.registry import techniques

    for technique in techniques().values():
        for heading in ("Shapes:" if technique.name != "lora_plus" else "Source:", "Source:", "Differs:", "Cost:"):
            assert heading in (technique.__doc__ or ""), f"{technique.name} lacks {heading}"


def test_importing_the_package_imports_no_torch():
    code = "import sys, hina_kohya; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
