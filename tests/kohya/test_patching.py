"""The states a target can be in, what is refused and how, and that everything comes back byte for byte."""

import dataclasses as dc
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hina_kohya import patch
from hina_kohya.patch import State, newlines, swap, targets
from hina_kohya.patch.manifest import known
from hina_kohya.patch.targets import LYCORIS, SD_SCRIPTS, Target
from hina_kohya.trainers.errors import UserError
from tests.kohya.patch_site import make_checkout, make_site, published

NOT_ROOT = 65534


@pytest.fixture
def file(tmp_path, monkeypatch):
    found(monkeypatch, tmp_path / "site")
    return make_site(tmp_path / "site", published())


def found(monkeypatch, root, version="4.1.3"):
    monkeypatch.setattr(targets, "find_lycoris", lambda: Target(LYCORIS, root, version, sys.executable))


def state(name=LYCORIS, **where):
    return patch.inspect(name, **where).state


def apply(name=LYCORIS, **where):
    return patch.apply(patch.inspect(name, **where))


def revert(name=LYCORIS, **where):
    return patch.revert(patch.inspect(name, **where))


def identity(file):
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, file.read_bytes()


def refusal(act, **where):
    """The message of a refused action, after which nothing in the folder is different."""
    folder = patch.inspect(LYCORIS).file.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError) as refused:
        act(**where)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    return str(refused.value)


@pytest.mark.parametrize("style", [newlines.LF, newlines.CRLF])
def test_apply_and_revert_whatever_the_line_endings(file, style):
    original = newlines.from_lf(newlines.to_lf(file.read_bytes()), style)
    file.write_bytes(original)
    assert state() is State.NOT_PATCHED
    apply()
    assert state() is State.PATCHED
    assert newlines.style(file.read_bytes()) == style
    assert file.read_bytes().startswith(original)
    assert swap.kept_original(file).read_bytes() == original
    revert()
    assert state() is State.NOT_PATCHED
    assert file.read_bytes() == original
    assert sorted(path.name for path in file.parent.iterdir()) == ["__init__.py", "kohya.py"]


def test_twice_is_once_and_says_so(file):
    assert apply().startswith("patched ")
    before = identity(file)
    assert apply().startswith("already patched, nothing to do")
    assert identity(file) == before
    assert revert().startswith("reverted ")
    before = identity(file)
    assert revert().startswith("not patched, nothing to do")
    assert identity(file) == before


def test_revert_without_the_kept_original(file):
    original = file.read_bytes()
    apply()
    swap.kept_original(file).unlink()
    assert "is gone" in patch.inspect(LYCORIS).remarks[0]
    revert()
    assert file.read_bytes() == original


def test_revert_does_not_trust_a_kept_original_that_was_changed(file):
    original = file.read_bytes()
    apply()
    swap.kept_original(file).write_bytes(b"# something else\n")
    assert "is not the original any more; delete it" in refusal(revert)
    swap.kept_original(file).unlink()
    revert()
    assert file.read_bytes() == original


@pytest.mark.parametrize("action", [apply, patch.preview])
def test_a_changed_file_is_refused_with_every_difference(file, action):
    lines = file.read_bytes().split(b"\n")
    lines[9] = b"import torch  # mine\t"
    lines.insert(100, b"DEBUG = True")
    del lines[200:202]
    file.write_bytes(b"\n".join(lines))
    told = patch.inspect(LYCORIS)
    assert told.state is State.CHANGED
    message = refusal(lambda: action(told) if action is patch.preview else action())
    differences = message.split("4.1.0-4.1.3:\n")[1].split("\nnext: ")[0].splitlines()
    assert differences == [
        "  published line 10 is replaced by:",
        "    10: 'import torch  # mine\\t'",
        "  added after published line 100:",
        "    101: 'DEBUG = True'",
        "  published lines 200 to 201 are missing after line 200",
    ]
    assert "--force-reinstall --no-deps lycoris-lora==4.1.3" in message


def test_a_long_difference_is_cut_for_apply_and_whole_for_diff(file):
    file.write_bytes(file.read_bytes() + b"".join(b"x = %d\n" % number for number in range(100)))
    assert "and 81 more" in refusal(apply)
    whole = refusal(lambda: patch.preview(patch.inspect(LYCORIS)))
    assert all(f"'x = {number}'" in whole for number in range(100))


def test_revert_refuses_a_patched_file_that_was_changed(file):
    apply()
    file.write_bytes(file.read_bytes() + b"x = 1\n")
    message = refusal(revert)
    assert "changed locally" in message
    assert "the published patched file of 4.1.0-4.1.3:\n  added after published line 916:\n    917: 'x = 1'" in message


def test_revert_keeps_the_original_of_a_file_that_is_not_known(file):
    original = file.read_bytes()
    apply()
    start = file.read_bytes().index(b"# >>> hina-kohya >>>")
    patched = file.read_bytes()
    file.write_bytes(patched[:start] + patched[patched.index(b"\n", start) + 1 :])  # the first line of ours is gone
    assert "published line 904 is missing after line 903" in refusal(revert)
    file.write_bytes(original + b"x = 1\n")
    assert revert().startswith("not patched, nothing to do")
    assert swap.kept_original(file).read_bytes() == original
    assert state() is State.CHANGED
    assert "what was patched was 4.1.0-4.1.3" in patch.inspect(LYCORIS).remarks[0]


def test_damaged_patch_files_change_nothing(file, tmp_path, monkeypatch):
    (one,) = [one for one in known(LYCORIS) if one.covered == "4.1.0-4.1.3"]
    for content in (one.patch.replace("install()", "uninstall()"), one.patch.replace("torch.save", "torch.load")):
        (tmp_path / "kohya.py.patch").write_text(content)
        damaged = (dc.replace(one, folder=tmp_path),)
        monkeypatch.setattr(patch.states, "known", lambda name, damaged=damaged: damaged)
        assert "are not as published; reinstall hina-kohya" in refusal(apply)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.replace(b"\n", b"\r\n", 2), "line endings are mixed: lines 1, 2 do not end as the rest"),
        (lambda data: data[:-1], "line 901 has no line ending"),
        (lambda data: b"\xef\xbb\xbf" + data, "1: '\\ufeffimport os'"),
        (lambda data: data + b"# caf\xe9\n", "902: '# caf\\udce9'"),
    ],
)
def test_small_changes_are_seen_and_named(file, change, named):
    file.write_bytes(change(file.read_bytes()))
    assert state() is State.CHANGED
    assert named in refusal(apply)


def test_an_unknown_version_is_compared_with_the_closest(file, tmp_path, monkeypatch):
    found(monkeypatch, tmp_path / "site", "9.0.0")
    file.write_bytes(file.read_bytes() + b"new = 1\n")
    assert state() is State.UNKNOWN
    message = refusal(apply)
    for part in ("version 9.0.0", "3.0.0-3.0.0.post1, 3.1.0", "of 4.1.0-4.1.3:", "902: 'new = 1'", "needs no patch"):
        assert part in message
    assert revert().startswith("not patched")


def test_a_known_file_in_a_release_of_another_number_is_patched_and_said(file, tmp_path, monkeypatch):
    found(monkeypatch, tmp_path / "site", "4.1.4")
    assert patch.inspect(LYCORIS).remarks == ("version 4.1.4, but the file is that of 4.1.0-4.1.3",)
    apply()
    assert state() is State.PATCHED


def test_a_reinstallation_under_the_patch_is_noticed(file):
    original = file.read_bytes()
    apply()
    file.unlink()  # as pip does, which leaves what it did not install
    file.write_bytes(original)
    told = patch.inspect(LYCORIS)
    assert told.state is State.REPLACED
    assert "4.1.0-4.1.3" in told.remarks[0]
    assert told.next == "hina-kohya patch apply --target lycoris"
    apply()
    assert state() is State.PATCHED
    revert()
    assert state() is State.NOT_PATCHED


def test_revert_after_a_reinstallation_forgets_the_old_original(file):
    original = file.read_bytes()
    apply()
    file.write_bytes(original)
    assert "removed the original of what was patched before" in revert()
    assert state() is State.NOT_PATCHED
    assert file.read_bytes() == original


def test_mode_stays_and_a_hard_link_elsewhere_does_not_change(file, tmp_path):
    original = file.read_bytes()
    file.chmod(0o640)
    os.link(file, tmp_path / "cache.py")  # uv installs so
    apply()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert (tmp_path / "cache.py").read_bytes() == original
    revert()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert (tmp_path / "cache.py").read_bytes() == original


def test_a_symbolic_link_comes_back_and_its_target_does_not_change(file, tmp_path):
    original = file.read_bytes()
    file.replace(tmp_path / "cache.py")
    file.symlink_to(tmp_path / "cache.py")
    apply()
    assert state() is State.PATCHED
    assert (tmp_path / "cache.py").read_bytes() == original
    revert()
    assert file.readlink() == tmp_path / "cache.py"
    assert file.read_bytes() == original


def test_date_comes_back_so_that_compiled_files_stay_valid(file):
    os.utime(file, (1_600_000_000, 1_600_000_000))
    apply()
    revert()
    assert file.stat().st_mtime == 1_600_000_000


def test_what_an_interrupted_run_left_is_removed(file):
    (file.parent / "kohya.py.hina-staging-x").write_bytes(b"half")
    assert state() is State.NOT_PATCHED
    apply()
    assert not swap.leftovers(file)
    (file.parent / "kohya.py.hina-staging-x").write_bytes(b"half")
    apply()
    assert not swap.leftovers(file)


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_a_folder_that_cannot_be_written_to(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, into which only its owner may look
        file = make_site(Path(folder) / "site", published())
        found(monkeypatch, Path(folder) / "site")
        Path(folder).chmod(0o755)
        file.parent.chmod(0o555)
        try:
            if os.geteuid() == 0:  # root may write everywhere
                patch.inspect(LYCORIS)
                os.seteuid(NOT_ROOT)
            message = refusal(apply)
        finally:
            os.seteuid(os.getuid())
            file.parent.chmod(0o755)
        assert f"cannot change {file}: Permission denied; nothing was changed" in message


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from hina_kohya import patch
from hina_kohya.trainers.errors import UserError
from tests.kohya.patch_site import use
use(Path(sys.argv[1]))
told = patch.inspect("lycoris")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    getattr(patch, sys.argv[2])(told)
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("action", ["apply", "revert"])
def test_a_disk_that_takes_only_half_of_the_file(file, action):
    if action == "revert":
        apply()
        swap.kept_original(file).unlink()
    before = file.read_bytes()
    command = [sys.executable, "-c", FULL_DISK, str(file.parents[1]), action]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]).stdout
    assert "File too large; nothing was changed" in said
    assert file.read_bytes() == before
    assert sorted(path.name for path in file.parent.iterdir()) == ["__init__.py", "kohya.py"]


def test_sd_scripts(tmp_path):
    file = make_checkout(tmp_path)
    where = {"sd_scripts": tmp_path}
    assert state(SD_SCRIPTS, **where) is State.NOT_PATCHED
    apply(SD_SCRIPTS, **where)
    assert state(SD_SCRIPTS, **where) is State.PATCHED
    assert [path.name for path in file.parent.iterdir() if path != file] == ["train_util.py"]
    assert apply(SD_SCRIPTS, **where).startswith("already")
    revert(SD_SCRIPTS, **where)
    assert file.read_bytes() == b""
    file.write_text("import torch\n")
    with pytest.raises(UserError, match="added at the start:\n    1: 'import torch'"):
        apply(SD_SCRIPTS, **where)


def test_every_line_that_is_added_says_how_to_get_rid_of_it():
    for name in (LYCORIS, SD_SCRIPTS):
        for one in known(name):
            assert f"+# >>> hina-kohya >>> `hina-kohya patch revert --target {name}`" in one.patch
