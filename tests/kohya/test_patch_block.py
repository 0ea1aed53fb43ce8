"""The shipped blocks: whole, in and out of any file by the byte, and doing in a real import what they are for."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from hina_kohya.patch import block
from hina_kohya.patch.states import taken_out
from hina_kohya.patch.targets import FILES, LYCORIS, SD_SCRIPTS
from tests.support.patch_site import make_checkout, make_site, published

ROOT = Path(__file__).parents[2]
ALL = [
    pytest.param((name, lines), id=f"{name}-{number}")
    for name in (LYCORIS, SD_SCRIPTS)
    for number, lines in enumerate(block.blocks(name))
]
# sha256 of what 0.1.0 put in: a file with it must be known, and go back, in every later release.
OF_0_1_0 = {
    LYCORIS: "e562410a84b7d8e8387f40a2d2fb89875c552193909145baf0185a2c9ec71cde",
    SD_SCRIPTS: "df96284d95bf62ff8b99bfe900cc68db76801a3ae1ab03c9d60bc661c63d9e3f",
}
PIECES = st.lists(st.sampled_from(["x = 1", "\n", "\r\n", "\r", " ", "\ufeff", "\t# é", "\n\n\n"]), max_size=12)
FILE_CONTENTS = PIECES.map(lambda pieces: "".join(pieces).encode())


@pytest.mark.parametrize("target_and_block", ALL)
def test_a_block_stands_between_markers_and_says_how_to_get_rid_of_it(target_and_block):
    name, lines = target_and_block
    compile(lines, name, "exec", dont_inherit=True)
    first, *_, last = lines.decode("ascii").splitlines()
    assert first == f"# >>> hina-kohya >>> `hina-kohya patch revert --target {name}` takes these lines out"
    assert last == "# <<< hina-kohya <<<"
    assert lines.endswith(b"<<<\n")
    assert lines.count(b">>> hina-kohya") == lines.count(b"hina-kohya <<<\n") == 1


def test_blocks_of_earlier_releases_are_known():
    for name, digest in OF_0_1_0.items():
        assert digest in [hashlib.sha256(lines).hexdigest() for lines in block.blocks(name)]


def test_the_list_of_what_was_tried():
    versions = [Version(version) for version in block.tried(LYCORIS)]
    assert versions == sorted(set(versions))
    assert importlib.metadata.version("lycoris-lora") in block.tried(LYCORIS)
    commits = block.tried(SD_SCRIPTS)
    assert all(len(commit) == 8 and int(commit, 16) for commit in commits)


@pytest.mark.slow
@pytest.mark.parametrize("target_and_block", ALL)
@settings(deadline=None)
@given(data=FILE_CONTENTS)
def test_whatever_the_file_holds_it_comes_back_by_the_byte(target_and_block, data):
    name, lines = target_and_block
    patched = block.put_in(data, lines)
    assert patched.startswith(data)
    assert block.take_out(patched, lines) == taken_out(name, patched) == data
    assert block.take_out(data, lines) is None
    assert taken_out(name, block.put_in(patched, lines)) is None  # twice is not what apply does


@pytest.mark.slow
@settings(deadline=None)
@given(
    data=FILE_CONTENTS,
    position=st.integers(min_value=0),
    new=st.binary(max_size=2).filter(lambda new: b"\n" not in new),
)
def test_a_block_with_any_byte_changed_is_not_the_patch(data, position, new):
    patched = block.put_in(data, block.blocks(LYCORIS)[0])
    start = patched.index(b"# >>> hina-kohya")
    at = start + position % (len(patched) - start)
    changed = patched[:at] + new + patched[at + 1 :]
    assert taken_out(LYCORIS, changed) == (data if changed == patched else None)


def test_lines_that_name_us_are_shown_with_their_numbers():
    assert block.lines_of_ours(b"a\nimport hina_kohya\t\r\nb # caf\xe9 of hina-kohya") == (
        "2: 'import hina_kohya\\t\\r'",
        "3: 'b # caf\\udce9 of hina-kohya'",
    )
    assert block.lines_of_ours(b"import hina\n# kohya") == ()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    "data",
    [published(), published().replace(b"\n", b"\r\n"), published()[:-1], b"", b"\r\n"],
    ids=["lf", "crlf", "no final newline", "empty", "one line ending"],
)
def test_git_apply_makes_the_same_file(tmp_path, data):
    patched = block.put_in(data, block.blocks(LYCORIS)[0])
    file = tmp_path / FILES[LYCORIS]
    file.parent.mkdir()
    file.write_bytes(data)
    patch = tmp_path / "patch"
    patch.write_bytes(block.diff(data, patched, FILES[LYCORIS]).encode())
    for way, expected in (((), patched), (("--reverse",), data)):
        subprocess.run(["git", "apply", *way, patch], cwd=tmp_path, check=True, env={**os.environ, "GIT_DIR": "none"})
        assert file.read_bytes() == expected


# What stands in for the rest of LyCORIS is enough for our lines at the end of its file.
STAND_IN = "import logging\nlogger = logging.getLogger('LyCORIS')\ndef create_network(**kwargs): pass\n"


@pytest.fixture(params=ALL)
def patched_module(request, tmp_path):
    """(name of a module that has our lines at its end, its file)"""
    name, lines = request.param
    if name == LYCORIS:
        file = make_site(tmp_path, b"")
        content = STAND_IN
    else:
        file = make_checkout(tmp_path)
        content = ""
    file.write_bytes(block.put_in(content.encode(), lines))
    return ("lycoris.kohya" if name == LYCORIS else "library"), file


def run(module, file, *options, prelude="", after=""):
    folder = file.parents[1]
    code = f"import sys\n{prelude}\nsys.path.insert(0, {str(folder)!r})\nimport {module}\n{after}"
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
def test_the_lines_install_the_hooks_at_once(patched_module):
    module, file = patched_module
    wrapped = "hasattr(lycoris.kohya.create_network, '__wrapped__')" if module == "lycoris.kohya" else "True"
    done = run(module, file, after=f"from hina_kohya.trainers import hooks; print(hooks.active(), {wrapped})")
    assert (done.stdout, done.returncode) == ("True True\n", 0), done.stderr


def test_without_the_package_one_warning_says_how_to_undo(patched_module):
    module, file = patched_module
    done = run(module, file, "-I", "-S", after="print('goes on')")  # no site-packages, so no hina_kohya
    assert (done.stdout, done.returncode) == ("goes on\n", 0)
    assert len(done.stderr.splitlines()) == 1
    assert "hina_kohya is not installed any more" in done.stderr
    assert str(file) in done.stderr


@pytest.mark.parametrize("broken", ["hina_kohya.trainers.hooks", "wrapt"])
def test_any_other_error_is_raised(patched_module, broken):
    module, file = patched_module
    done = run(module, file, prelude=f"sys.modules[{broken!r}] = None")
    assert done.returncode == 1
    assert broken in done.stderr.splitlines()[-1]
