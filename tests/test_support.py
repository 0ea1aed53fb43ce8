"""Where helpers of the tests are: in tests/support, so that a test can be renamed, moved or run alone."""

import ast
import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from tests.support import forks
from tests.support.children import without_peft  # noqa: F401 (a fixture)
from tests.support.combinations import in_pairs, same

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))
ROOMS = ("support", "oracles", "golden", "kohya/double", "kohya/double_musubi")  # of what is no test


def is_test(dotted):
    return any(part.startswith("test_") or part == "conftest" for part in dotted.split("."))


def imports(source, package):
    """Dotted names that a file under tests imports, with those of its own package written out."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def of_tests(source, package=("tests", "core")):
    return [name for name in imports(source, package) if name.startswith("tests.") and is_test(name)]


@pytest.mark.slow
def test_no_file_imports_a_test():
    wrong = {
        str(path.relative_to(TESTS)): of_tests(
            path.read_text(encoding="utf-8"), ("tests", *path.relative_to(TESTS).parent.parts)
        )
        for path in FILES
    }
    assert {name: names for name, names in wrong.items() if names} == {}


def test_helpers_are_in_support():
    """And no test is: pytest would collect it there, and look for none."""
    for path in (PurePosixPath(path.relative_to(TESTS).as_posix()) for path in FILES):
        room = next((room for room in ROOMS if path.is_relative_to(room)), None)
        assert room or is_test(path.stem), f"{path}: move it to tests/support"
        assert not (room == "support" and is_test(path.stem)), f"{path}: move it out of tests/support"


@pytest.mark.parametrize(
    "line",
    [
        "from tests.core.test_edges import STATES",
        "from tests.core import test_edges",
        "import tests.core.test_edges as edges",
        "from .test_edges import STATES",
        "from ..conftest import train",
        "def late():\n    from tests import conftest",
    ],
)
def test_an_import_of_a_test_is_seen(line):
    assert of_tests(line)


@pytest.mark.parametrize(
    "line",
    [
        "from tests.support.chains import STATES",
        "from .adamw import AdamW",
        "import pytest",
        "from torch import testing",
    ],
)
def test_other_imports_are_none(line):
    assert of_tests(line) == []


def test_processes_of_a_test_have_no_peft():
    assert importlib.util.find_spec("peft")
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('peft') is not None or u.find_spec('torch') is None)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("sizes", [(3, 3, 3), (29, 3, 2), (8, 3, 3), (2, 2, 1)])
def test_every_pair_of_values_is_a_case(sizes):
    axes = [same(range(size)) for size in sizes]
    cases = [case.values for case in in_pairs(("a", "b", "c"), *axes).args[1]]
    assert len(cases) == sizes[0] * sizes[1]
    for one, other in itertools.combinations(range(3), 2):
        assert {(case[one], case[other]) for case in cases} == set(
            itertools.product(range(sizes[one]), range(sizes[other]))
        )


WORLD = "import os, sys; print(sys.path, sys.argv, os.getcwd(), __name__, sorted(os.environ)); print(input())"
ENDS = ("sys.exit()", "sys.exit(3)", "sys.exit('a word')", "os._exit(4)", "1 / 0", "os.kill(os.getpid(), 9)")


@pytest.mark.slow
@pytest.mark.skipif(not forks.HAS_FORK, reason="no fork")
@pytest.mark.parametrize("words", [("-c",), ("-B", "FILE"), ("-m", "world")], ids=lambda words: words[-1])
@pytest.mark.parametrize("end", ENDS)
def test_a_fork_is_as_a_python_of_its_own(tmp_path, monkeypatch, words, end):
    code = f"{WORLD}\n{end}\n"
    (tmp_path / "world.py").write_text(code)
    words = [str(tmp_path / "world.py") if word == "FILE" else word for word in words]
    command = [sys.executable, *words, *([code] if words == ["-c"] else []), "an", "argument"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": ""}

    def run():
        done = subprocess.run(
            command, input="a line\n", capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
        )
        said = done.stderr.splitlines()
        return done.returncode, done.stdout, said[-1:]

    apart = run()
    monkeypatch.setattr(subprocess, "Popen", forks.Popen)
    assert run() == apart
    assert apart[0] == {"sys.exit()": 0, "sys.exit(3)": 3, "os._exit(4)": 4, ENDS[-1]: -9}.get(end, 1)
    assert apart[1].endswith("a line\n") or end.startswith("os.")  # what is not flushed is lost
