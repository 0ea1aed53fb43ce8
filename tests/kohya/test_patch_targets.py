"""LyCORIS and sd-scripts are found as Python and the user would find them, and nothing of theirs is imported."""

import os
import shutil
import subprocess
import sys

import pytest

from hina_kohya.patch import targets
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.errors import UserError
from tests.support.patch_site import make_checkout, make_site

COMMIT = "48d368fa557731ad0488c07304dfeba8c07910eb"
FIND = """
import sys
from hina_kohya.patch import targets
from hina_kohya.trainers import checkouts
found = targets.find_lycoris()
print(found.root, found.version, sorted({"lycoris", "torch"} & set(sys.modules)))
"""


def find_in(root):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", FIND], check=True, capture_output=True, text=True, env=environment)


def test_lycoris_is_the_one_that_python_would_import_and_is_not_imported(tmp_path):
    make_site(tmp_path / "site", b"raise ImportError\n", "3.9.9")
    (tmp_path / "site" / "lycoris" / "__init__.py").write_text("raise ImportError\n")
    assert find_in(tmp_path / "site").stdout == f"{tmp_path / 'site'} 3.9.9 []\n"


@pytest.mark.parametrize("where", ["argument", "environment", "folder", "folder inside"])
def test_sd_scripts_is_found(tmp_path, monkeypatch, where):
    make_checkout(tmp_path)
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    if where == "environment":
        monkeypatch.setenv("SD_SCRIPTS_HOME", str(tmp_path))
    elif where.startswith("folder"):
        monkeypatch.chdir(tmp_path / "library" if "inside" in where else tmp_path)
    found = targets.find_sd_scripts(tmp_path if where == "argument" else None)
    assert found == targets.Target("sd-scripts", tmp_path, None, sys.executable)


def test_what_is_no_checkout_is_refused_by_name_or_not_found(tmp_path, monkeypatch):
    monkeypatch.setenv("SD_SCRIPTS_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"SD_SCRIPTS_HOME .* is no checkout of sd-scripts .*: there is no train_net"):
        targets.find_sd_scripts()
    with pytest.raises(UserError, match=r"--sd-scripts .* is no checkout"):
        targets.find_sd_scripts(tmp_path / "nowhere")
    monkeypatch.delenv("SD_SCRIPTS_HOME")
    monkeypatch.chdir(tmp_path)
    assert targets.find_sd_scripts() is None


def test_the_commit_is_read_without_git(tmp_path):
    git = tmp_path / ".git"
    assert checkouts.commit(tmp_path) is None
    git.mkdir()
    (git / "HEAD").write_text(f"{COMMIT}\n")  # detached
    assert checkouts.commit(tmp_path) == COMMIT
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert checkouts.commit(tmp_path) is None
    (git / "packed-refs").write_text(f"# pack-refs\n{COMMIT[::-1]} refs/heads/remain\n{COMMIT} refs/heads/main\n")
    assert checkouts.commit(tmp_path) == COMMIT
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "refs" / "heads" / "main").write_text(f"{COMMIT[::-1]}\n")  # newer than the packed one
    assert checkouts.commit(tmp_path) == COMMIT[::-1]


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_what_git_says_in_a_worktree(tmp_path):
    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path / "clone"), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "clone").mkdir()
    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=one")
    git("worktree", "add", "--quiet", str(tmp_path / "tree"))
    git("pack-refs", "--all")
    assert checkouts.commit(tmp_path / "tree") == checkouts.commit(tmp_path / "clone") == git("rev-parse", "HEAD")


def test_a_checkout_with_its_own_environment_is_run_by_that(tmp_path):
    make_checkout(tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    found = targets.find_sd_scripts(tmp_path)
    assert found is not None
    assert found.python == str(python)
    assert not found.imports_us()
    assert targets.Target("sd-scripts", tmp_path, None, sys.executable).imports_us()
    assert not targets.Target("sd-scripts", tmp_path, None, str(tmp_path / "no-python")).imports_us()
