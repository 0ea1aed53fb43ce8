"""`hina-kohya patch`: what is printed, where to, and the exit code."""

import sys

import pytest

from hina_kohya.cli import patch
from hina_kohya.patch import targets, trial
from hina_kohya.patch.targets import LYCORIS, Target
from tests.support.patch_site import make_checkout, make_site, published

TRIED = "  tried on a copy first: by nobody, in a test of words\n"
NEW = "  nobody has tried the patch on sd-scripts of an unknown version before\n"


@pytest.fixture(autouse=True)
def _nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "run", lambda *words: "by nobody, in a test of words")
    monkeypatch.setattr(targets, "find_lycoris", lambda: None)
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lycoris(tmp_path, monkeypatch):
    root = tmp_path / "site"
    monkeypatch.setattr(targets, "find_lycoris", lambda: Target(LYCORIS, root, "4.1.3", sys.executable))
    return make_site(root, published())


@pytest.fixture
def run(capsys):
    def run(*words):
        code = patch.main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_status_names_state_file_and_next_command(lycoris, run):
    code, out, err = run("status")
    assert (code, err) == (0, "")
    assert out == (
        f"lycoris 4.1.3: not patched\n  {lycoris}\n  next: hina-kohya patch apply --target lycoris\n"
        "sd-scripts: not found\n  next: add --sd-scripts PATH, or set SD_SCRIPTS_HOME\n"
    )


def test_all_that_is_found_is_applied_and_reverted(lycoris, run, tmp_path):
    library = make_checkout(tmp_path / "checkout")
    where = ("--sd-scripts", str(tmp_path / "checkout"))
    original = lycoris.read_bytes()
    said = f"lycoris: patched {lycoris}\n{TRIED}sd-scripts: patched {library}\n{TRIED}{NEW}"
    assert run("apply", *where) == (0, said, "")
    code, out, _ = run("status", *where)
    assert code == 0
    assert out.count(": patched\n") == 2
    assert f"  next: nothing; to undo: hina-kohya patch revert --target sd-scripts --sd-scripts {where[1]}\n" in out
    assert run("revert", *where) == (0, f"lycoris: reverted {lycoris}\nsd-scripts: reverted {library}\n", "")
    assert (lycoris.read_bytes(), library.read_bytes()) == (original, b"")


def test_one_target_does_not_wait_for_the_other(lycoris, run, tmp_path):
    library = make_checkout(tmp_path / "checkout")
    lycoris.write_bytes(b"import hina_kohya\n" + lycoris.read_bytes())
    code, out, err = run("apply", "--sd-scripts", str(tmp_path / "checkout"))
    assert (code, out) == (2, f"sd-scripts: patched {library}\n{TRIED}{NEW}")
    assert f"hina-kohya patch: error: {lycoris} is changed in the lines of hina-kohya, and was left as it is.\n" in err
    assert "\n1: 'import hina_kohya'\n" in err
    assert not run("apply", "--target", "sd-scripts", "--sd-scripts", str(tmp_path / "checkout"))[0]


def test_diff_changes_nothing(lycoris, run):
    before = lycoris.read_bytes()
    code, out, _ = run("diff", "--target", "lycoris")
    assert code == 0
    assert out.startswith("--- a/lycoris/kohya.py\n+++ b/lycoris/kohya.py\n@@ ")
    assert "+    _hina_hooks.install()\n" in out
    assert lycoris.read_bytes() == before
    run("apply")
    assert run("diff", "--target", "lycoris")[1] == "lycoris: already patched, nothing to apply\n"


def test_what_is_not_there_is_an_error_where_it_is_asked_for(lycoris, run):
    assert run("apply")[:2] == (
        0,
        f"lycoris: patched {lycoris}\n{TRIED}sd-scripts: not found; add --sd-scripts PATH, or set SD_SCRIPTS_HOME\n",
    )
    code, _, err = run("apply", "--target", "sd-scripts")
    assert code == 2
    assert "sd-scripts is not found; add --sd-scripts PATH, or set SD_SCRIPTS_HOME" in err
    code, out, err = run("status", "--sd-scripts", "nowhere")
    assert code == 2
    assert out.startswith("lycoris 4.1.3: patched")
    assert "--sd-scripts nowhere is no checkout of sd-scripts" in err


def test_nothing_at_all_is_an_error_for_apply_and_none_for_status(run):
    assert run("apply")[0] == 2
    assert run("status")[0] == 0


def test_an_interpreter_without_this_package_is_warned_about(run, tmp_path):
    make_checkout(tmp_path / "checkout")
    python = tmp_path / "checkout" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    for action in ("status", "apply"):
        code, out, _ = run(action, "--target", "sd-scripts", "--sd-scripts", str(tmp_path / "checkout"))
        assert code == 0
        assert f"{python} cannot import hina_kohya, so the patch would do nothing but warn" in out
        assert f"{python} -m pip install hina-kohya" in out
