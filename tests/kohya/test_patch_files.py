"""The shipped patch files: whole, and doing in a real import what they are for."""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version

from hina_kohya.patch import newlines, unified
from hina_kohya.patch.manifest import FOLDERS, known, line_hash
from hina_kohya.patch.targets import LYCORIS, SD_SCRIPTS
from tests.kohya.patch_site import make_checkout, make_site, published

ROOT = Path(__file__).parents[2]
ALL = [pytest.param(name, one, id=f"{name}-{one.covered}") for name in FOLDERS for one in known(name)]


@pytest.mark.parametrize(("name", "one"), ALL)
def test_every_patch_goes_in_and_out_and_only_adds(name, one):
    patched = unified.apply(one.patch, one.hashes, key=line_hash)
    assert patched[: len(one.hashes)] == one.hashes
    assert unified.apply(one.patch, patched, reverse=True, key=line_hash) == one.hashes
    quoted = [line for line in one.patch.splitlines() if line.startswith(" ")]
    assert len(quoted) <= 1  # of somebody else's file


@pytest.mark.parametrize("name", FOLDERS)
def test_the_manifest_names_every_file_there_is(name):
    folder = ROOT / "patches" / FOLDERS[name]
    file = Path(known(name)[0].file).name
    expected = {folder / "manifest.toml"}
    expected |= {folder / one.covered / f"{file}.{kind}" for one in known(name) for kind in ("patch", "lines")}
    assert {path for path in folder.rglob("*") if path.is_file()} == expected
    versions = [Version(version) for one in known(name) for version in one.versions]
    assert versions == sorted(set(versions))


def test_sha256_of_the_installed_release():
    release = importlib.metadata.version("lycoris-lora")
    (one,) = [one for one in known(LYCORIS) if release in one.versions]
    assert hashlib.sha256(published()).hexdigest() == one.before


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_apply_makes_the_same_file(tmp_path):
    one = next(one for one in known(LYCORIS) if one.is_before(published()))
    text = published().decode()
    ours = "".join(f"{line}\n" for line in unified.apply(one.patch, unified.lines_of(text)))
    (tmp_path / "lycoris").mkdir()
    (tmp_path / "lycoris" / "kohya.py").write_bytes(published())
    patch = str(one.folder / "kohya.py.patch")
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True, env={**os.environ, "GIT_DIR": "none"})
    assert (tmp_path / "lycoris" / "kohya.py").read_text() == ours
    assert one.is_after(ours.encode())
    assert not one.is_after(ours.encode() + b"\n")


def test_a_diff_that_does_not_fit_is_an_error():
    diff = "--- a\n+++ b\n@@ -3 +3,2 @@\n c\n+d\n"
    assert unified.apply(diff, ["a", "b", "c"]) == ["a", "b", "c", "d"]
    assert unified.apply(diff, ["a", "b", "c", "d", "e"], reverse=True) == ["a", "b", "c", "e"]
    for lines in (["a", "b", "x"], ["a", "b"], []):
        with pytest.raises(unified.DoesNotApply):
            unified.apply(diff, lines)
    with pytest.raises(unified.DoesNotApply):
        unified.apply(diff, ["a", "b", "c", "x"], reverse=True)


def test_only_newlines_end_a_line():
    assert unified.lines_of("a\x0cb\u2028c\n\nd") == ["a\x0cb\u2028c", "", "d"]
    assert newlines.style(b"a\rb\n") == newlines.LF
    assert newlines.odd_lines(b"a\r\nb\nc\r\n") == [2]


# What stands in for the rest of LyCORIS is enough for our lines at the end of its file.
STAND_IN = "import logging\nlogger = logging.getLogger('LyCORIS')\ndef create_network(**kwargs): pass\n"


@pytest.fixture(params=[LYCORIS, SD_SCRIPTS])
def patched_module(request, tmp_path):
    """(name of a module that has our lines at its end, its file)"""
    name = request.param
    if name == LYCORIS:
        file = make_site(tmp_path, b"")
        content = STAND_IN
    else:
        file = make_checkout(tmp_path)
        content = ""
    added = [line[1:] for line in known(name)[-1].patch.splitlines()[3:] if line.startswith("+")]
    file.write_text(content + "".join(f"{line}\n" for line in added))
    return ("lycoris.kohya" if name == LYCORIS else "library"), file


def run(module, file, *options, prelude="", after=""):
    folder = file.parents[1]
    code = f"import sys\n{prelude}\nsys.path.insert(0, {str(folder)!r})\nimport {module}\n{after}"
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


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
