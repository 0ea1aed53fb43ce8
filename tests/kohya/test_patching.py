"""The states a target can be in, what is refused and how, and that everything comes back byte for byte."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hina_kohya import patch
from hina_kohya.patch import State, block, swap, targets, trial
from hina_kohya.patch.targets import LYCORIS, SD_SCRIPTS, Target
from hina_kohya.trainers.errors import UserError
from tests.support.patch_site import make_checkout, make_site, published

NOT_ROOT = 65534
TRIED = "tried by nobody: this is a test of files"


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch):
    """tests/kohya/test_patch_trial.py has the real one, which takes seconds."""
    monkeypatch.setattr(trial, "run", lambda *words: TRIED)


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


def crlf(data):
    return data.replace(b"\n", b"\r\n")


CONTENTS = {
    "lf": lambda data: data,
    "crlf": crlf,
    "mixed, lf at the end": lambda data: data.replace(b"\n", b"\r\n", 2),
    "mixed, crlf at the end": lambda data: data[:-1] + b"\r\n",
    "no final newline": lambda data: data[:-1],
    "crlf, no final newline": lambda data: crlf(data)[:-2],
    "blank lines at the end": lambda data: data + b"\n\n\n",
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "edited elsewhere": lambda data: data.replace(b"import torch", b"import torch  # mine\t", 1) + b"DEBUG = 1\n",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_apply_and_revert_whatever_the_line_endings_and_the_edits(file, content):
    original = CONTENTS[content](file.read_bytes())
    file.write_bytes(original)
    assert state() is State.NOT_PATCHED
    apply()
    assert state() is State.PATCHED
    assert file.read_bytes().startswith(original)
    compile(file.read_bytes(), "kohya.py", "exec", dont_inherit=True)
    windows = original.rstrip(b"\n").endswith(b"\r") if original.endswith(b"\n") else b"\r\n" in original
    added = file.read_bytes().removeprefix(original)
    assert added.count(b"\r\n") == (added.count(b"\n") if windows else 0)
    assert swap.kept_original(file).read_bytes() == original
    revert()
    assert state() is State.NOT_PATCHED
    assert file.read_bytes() == original
    assert sorted(path.name for path in file.parent.iterdir()) == ["__init__.py", "kohya.py"]
    apply()
    swap.kept_original(file).unlink()
    revert()
    assert file.read_bytes() == original


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
    assert "is not the original any more, or kohya.py was changed since" in refusal(revert)
    swap.kept_original(file).unlink()
    revert()
    assert file.read_bytes() == original


def test_a_patched_file_that_was_edited_since_is_not_reverted(file):
    """In the lines above ours; what stands there may be neither lost nor called the original."""
    original = file.read_bytes()
    apply()
    file.write_bytes(b"import os  # mine\n" + file.read_bytes())
    assert state() is State.PATCHED
    assert "changed since it was patched" in patch.inspect(LYCORIS).remarks[0]
    assert apply().startswith("already patched, nothing to do")
    assert "kohya.py was changed since it was patched; both were left" in refusal(revert)
    swap.kept_original(file).unlink()
    revert()
    assert file.read_bytes() == b"import os  # mine\n" + original


OURS = block.blocks(LYCORIS)[0]
FIRST = OURS[: OURS.index(b"\n") + 1]
LAST = OURS[OURS.rindex(b"#") :]
OTHER_LINES = {
    "after the block": (lambda data: block.put_in(data, OURS) + b"x = 1\n", 904),
    "no first line": (lambda data: data + OURS.removeprefix(FIRST), 903),
    "no last line": (lambda data: data + OURS.removesuffix(LAST), 902),
    "half a block": (lambda data: block.put_in(data, OURS)[:-100], 904),
    "a line edited": (lambda data: block.put_in(data, OURS.replace(b".install()", b".install() ")), 904),
    "a block of a later release": (lambda data: block.put_in(data, OURS.replace(b"else:", b"else:  # 9.0")), 904),
    "tabs": (lambda data: block.put_in(data, OURS.replace(b"    ", b"\t")), 904),
    "twice": (lambda data: block.put_in(block.put_in(data, OURS), OURS), 904),
    "nested": (lambda data: block.put_in(data, OURS.replace(b"else:\n", OURS + b"else:\n")), 904),
    "of the other target": (lambda data: block.put_in(data, block.blocks(SD_SCRIPTS)[0]), 904),
    "no gap": (lambda data: data + OURS, 902),
    "in other line endings": (lambda data: crlf(data) + b"\n\n" + OURS, 904),
    "an import of ours": (lambda data: b"import hina_kohya\n" + data, 1),
    "an import of ours above the block": (lambda data: block.put_in(b"import hina_kohya\n" + data, OURS), 1),
}


@pytest.mark.parametrize("action", [apply, revert, patch.preview])
@pytest.mark.parametrize("lines", OTHER_LINES)
def test_other_lines_of_ours_are_refused_and_named(file, lines, action):
    change, number = OTHER_LINES[lines]
    file.write_bytes(change(file.read_bytes()))
    status = patch.inspect(LYCORIS)
    assert (status.state, status.patched) == (State.OTHER_LINES, True)
    message = refusal(lambda: action(status) if action is patch.preview else action())
    assert "kohya.py is changed in the lines of hina-kohya, and was left as it is." in message
    named = message.split("at the end:\n")[1].split("\nnext: ")[0].splitlines()
    assert int(named[0].partition(":")[0]) == number
    assert all("hina_kohya" in line or "hina-kohya" in line for line in named)
    assert "--force-reinstall --no-deps lycoris-lora==4.1.3; then hina-kohya patch apply" in message


def test_revert_keeps_the_original_of_a_file_that_is_another(file):
    original = file.read_bytes()
    apply()
    file.write_bytes(original + b"x = 1\n")
    assert f"{swap.kept_original(file)} is the original of what was patched before; delete it" in revert()
    assert swap.kept_original(file).read_bytes() == original
    assert state() is State.REPLACED


@pytest.mark.parametrize(
    ("change", "state", "named"),
    [
        (lambda data: data + b"# caf\xe9\n", State.UNREADABLE, "it is not UTF-8: byte 0xe9 in line 902"),
        (lambda data: data.decode().encode("utf-16"), State.UNREADABLE, "it is not UTF-8: byte 0xff in line 1"),
        (lambda data: data + b"def f(:\n", State.UNREADABLE, "it is not Python: invalid syntax, line 902"),
        (lambda data: data + b'"""', State.UNREADABLE, "it is not Python: unterminated triple-quoted string literal"),
        (lambda data: data + b"\\", State.UNREADABLE, "it is not Python: unexpected EOF"),
        (lambda data: b"\x7fELF\0\0", State.UNREADABLE, "it is not Python: "),
        (lambda data: b"", State.UNHOOKABLE, "it defines no create_network"),
        (lambda data: data.replace(b"create_network", b"make"), State.UNHOOKABLE, "it defines no create_network"),
    ],
)
@pytest.mark.parametrize("action", [apply, patch.preview])
def test_what_is_no_module_with_the_function_is_refused(file, change, state, named, action):
    file.write_bytes(change(file.read_bytes()))
    status = patch.inspect(LYCORIS)
    assert (status.state, status.patched) == (state, False)
    message = refusal(lambda: action(status) if action is patch.preview else action())
    assert named in message
    assert "--force-reinstall --no-deps lycoris-lora==4.1.3; then hina-kohya patch apply" in message
    assert revert().startswith("not patched, nothing to do")


def test_a_name_that_is_imported_is_a_function_to_wrap(file):
    file.write_bytes(b"try:\n    from lycoris.new import create_network\nexcept ImportError:\n    raise\n")
    assert state() is State.NOT_PATCHED


def test_a_release_that_nobody_tried_is_patched_and_said(file, tmp_path, monkeypatch):
    found(monkeypatch, tmp_path / "site", "9.0.0")
    file.write_bytes(file.read_bytes() + b"new = 1\n")
    assert patch.inspect(LYCORIS).remarks == (
        "nobody has tried the patch on lycoris-lora 9.0.0 yet; apply tries it on a copy first",
    )
    assert apply().splitlines() == [
        f"patched {file}",
        f"tried on a copy first: {TRIED}",
        "nobody has tried the patch on lycoris-lora 9.0.0 before",
    ]
    assert patch.inspect(LYCORIS).remarks == ()


def test_a_release_that_was_tried_is_not_said_to_be_new(file):
    assert patch.inspect(LYCORIS).remarks == ()
    assert apply().splitlines() == [f"patched {file}", f"tried on a copy first: {TRIED}"]


def test_a_failed_trial_changes_nothing(file, monkeypatch):
    def fails(target, staged, named):
        assert staged.read_bytes() == block.put_in(file.read_bytes(), OURS)
        assert named == file
        raise UserError("the trial failed")

    monkeypatch.setattr(trial, "run", fails)
    assert refusal(apply) == "the trial failed"
    file.write_bytes(file.read_bytes() + b"x = 1\n")
    swap.kept_original(file).write_bytes(b"of an earlier release")
    assert state() is State.REPLACED
    refusal(apply)  # the original of the earlier release is there, too
    assert state() is State.REPLACED


def test_what_changes_meanwhile_is_not_overwritten(file):
    status = patch.inspect(LYCORIS)
    file.write_bytes(file.read_bytes() + b"x = 1\n")
    assert "changed by somebody else just now" in refusal(lambda: patch.apply(status))


def test_a_reinstallation_under_the_patch_is_noticed(file):
    original = file.read_bytes()
    apply()
    file.unlink()  # as pip does, which leaves what it did not install
    file.write_bytes(original)
    told = patch.inspect(LYCORIS)
    assert told.state is State.REPLACED
    assert told.remarks == ("kohya.py.hina-original is the original of what was patched before",)
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
from tests.support.patch_site import use
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
    assert sorted(path.name for path in file.parent.iterdir()) == ["__init__.py", "train_util.py"]


@pytest.mark.parametrize("content", [b"import torch\n", b"import torch", b"\r\n", b"\n\n\n"])
def test_sd_scripts_of_tomorrow_whose_file_is_not_empty(tmp_path, content):
    file = make_checkout(tmp_path)
    file.write_bytes(content)
    apply(SD_SCRIPTS, sd_scripts=tmp_path)
    assert swap.kept_original(file).read_bytes() == content
    assert state(SD_SCRIPTS, sd_scripts=tmp_path) is State.PATCHED
    file.write_bytes(b"")  # as `git checkout` of an older commit would
    apply(SD_SCRIPTS, sd_scripts=tmp_path)
    assert not swap.kept_original(file).exists()  # of what is not there any more
    revert(SD_SCRIPTS, sd_scripts=tmp_path)
    assert file.read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"import torch\n"])
def test_a_file_patched_by_an_earlier_release_goes_back_and_is_patched_anew(tmp_path, content):
    file = make_checkout(tmp_path)
    new, earlier = block.blocks(SD_SCRIPTS)
    file.write_bytes(block.put_in(content, earlier))
    status = patch.inspect(SD_SCRIPTS, tmp_path)
    assert (status.state, status.patched) == (State.PATCHED, True)
    assert "by an earlier release of hina-kohya" in status.remarks[0]
    assert patch.apply(status).startswith("already patched, nothing to do")
    revert(SD_SCRIPTS, sd_scripts=tmp_path)
    assert file.read_bytes() == content
    apply(SD_SCRIPTS, sd_scripts=tmp_path)
    assert file.read_bytes() == block.put_in(content, new)


@pytest.mark.parametrize(
    ("source", "named"),
    [("def get_optimiser(args): ...\n", "neither library.optimizer.get_optimizer nor"), ("def f(:\n", "cannot read")],
)
def test_a_checkout_without_the_function_is_refused(tmp_path, source, named):
    file = make_checkout(tmp_path)
    (tmp_path / "library" / "train_util.py").write_text(source)
    with pytest.raises(UserError, match=named) as refused:
        apply(SD_SCRIPTS, sd_scripts=tmp_path)
    assert "a dotted optimizer_type, such as hina_kohya.HinaAdamW, needs no hooks" in str(refused.value)
    assert file.read_bytes() == b""


def test_sd_scripts_of_a_commit_that_nobody_tried(tmp_path):
    make_checkout(tmp_path)
    unknown = "nobody has tried the patch on sd-scripts of an unknown version yet; apply tries it on a copy first"
    assert patch.inspect(SD_SCRIPTS, tmp_path).remarks == (unknown,)
    (tmp_path / ".git").mkdir()
    for commit, remark in ((block.tried(SD_SCRIPTS)[-1] + 32 * "0", None), (40 * "a", f"sd-scripts {12 * 'a'} yet")):
        (tmp_path / ".git" / "HEAD").write_text(f"{commit}\n")
        remarks = patch.inspect(SD_SCRIPTS, tmp_path).remarks
        assert remarks == () if remark is None else remark in remarks[0]
