"""What a release is: a wheel with what an installed user needs and nothing else, and a tag that fits the changelog."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder

import hina_kohya

ROOT = Path(__file__).parents[1]
# Deflated Python source is 524,000 bytes of it, a fifth of that docstrings; names and places of files are 65,000.
LARGEST = 660_000
LARGEST_DATA = 30_000  # deflated, all that is no Python
TAG, HEADING = "v1.2.3", "## [1.2.3] - 2026-01-02\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def members(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(info.filename): info for info in archive.infolist()}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel in a folder of its own, and a command that sees it instead of this checkout."""
    site = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(site)

    def run(*words):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(
            [sys.executable, *words],
            cwd=site,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def relative(folder, pattern="*"):
    return {PurePosixPath(p.relative_to(ROOT).as_posix()) for p in (ROOT / folder).rglob(pattern) if p.is_file()}


def packaged(pattern):
    """Files of the package but for the demo, which is for a source checkout."""
    return {name for name in relative("hina_kohya", pattern) if name.parts[1] != "demo"}


def test_the_wheel_has_the_types_and_every_module(wheel, members):
    assert wheel.name == f"hina_kohya-{hina_kohya.__version__}-py3-none-any.whl"
    assert PurePosixPath("hina_kohya/py.typed") in members
    assert relative("hina_kohya", "*.pyi") == {name for name in members if name.suffix == ".pyi"}
    assert packaged("*.py") == {name for name in members if name.suffix == ".py"}


def test_the_wheel_has_what_the_package_reads_and_no_demo(members):
    data = {name for name in members if name.suffix not in (".py", ".pyi") and name.parts[0] == "hina_kohya"}
    settings = {
        PurePosixPath("hina_kohya") / name
        for folder in ("configs/presets", "configs/lycoris", "patches")
        for name in relative(folder)
    }
    assert data == settings | packaged("*.jinja") | packaged("*.json") | {PurePosixPath("hina_kohya/py.typed")}
    assert not [name for name in members if "demo" in name.parts]
    assert not [name for name in members if name.suffix in (".safetensors", ".pt", ".gz", ".png", ".npz")]


def test_the_wheel_is_small(wheel, members):
    data = sum(
        info.compress_size for name, info in members.items() if name.parts[0] == "hina_kohya" and name.suffix != ".py"
    )
    assert data <= LARGEST_DATA
    assert wheel.stat().st_size <= LARGEST


@pytest.mark.parametrize("words", [("--output_dir", "out"), ("--help",)])
def test_a_wheel_says_where_the_demo_is(installed, words):
    run = installed("-m", "hina_kohya.cli", "train", *words)
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert "is not in the wheel, it is in a source checkout" in line
    assert (ROOT / line.partition("`bash ")[2].partition("`")[0]).is_file()


def test_presets_and_patches_are_read_from_the_wheel(installed):
    code = """if True:
        import hina_kohya, pathlib
        from hina_kohya.optim import presets
        from hina_kohya.patch import block
        from hina_kohya.trainers import lycoris_presets
        home = pathlib.Path(hina_kohya.__file__).parent
        assert home.parent == pathlib.Path.cwd().resolve(), home
        assert presets.folder() == home / "configs" / "presets"
        assert presets.load("lokr", "HinaAdamW")
        assert pathlib.Path(lycoris_presets.path("anima")).is_relative_to(home)
        assert block.tried("lycoris")
    """
    run = installed("-c", code)
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notes_are_the_section_of_the_version(release):
    newer, older = "## [1.2.4] - 2026-02-03\n\nnewer\n\n", "## [1.2.2] - 2026-01-01\n\nolder\n"
    changelog = f"# Changelog\n\n{newer}{HEADING}\n### Added\n\n- a\n\n{older}"
    assert release.notes(TAG, "1.2.3", changelog) == "### Added\n\n- a\n"
    assert release.notes("v1.2.2", "1.2.2", changelog) == "older\n"


@pytest.mark.parametrize(
    ("tag", "version", "changelog", "message"),
    [
        ("v1.2.4", "1.2.3", HEADING + "\nx\n", "tag v1.2.3, or change the version"),
        ("1.2.3", "1.2.3", HEADING + "\nx\n", "tag v1.2.3"),
        (TAG, "1.2.3", "## [Unreleased]\n\nx\n", "no heading"),
        (TAG, "1.2.3", "## [1.2.3]\n\nx\n", "no heading"),
        (TAG, "1.2.3", "## [11213] - 2026-01-02\n\nx\n", "no heading"),
        (TAG, "1.2.3", HEADING + "\n## [1.2.2] - 2026-01-01\n\nx\n", "says nothing under 1.2.3"),
    ],
)
def test_a_release_that_does_not_fit_stops(release, tag, version, changelog, message):
    with pytest.raises(ValueError, match=message):
        release.notes(tag, version, changelog)


def test_this_version_has_notes():
    command = [sys.executable, str(ROOT / "scripts" / "release.py"), f"v{hina_kohya.__version__}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "### Numerics" in run.stdout


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_are_forms(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    assert ids[0] == {"bug": "doctor", "feature": "purpose"}[name]
    assert all(field["attributes"]["label"] for field in form["body"])


@pytest.mark.parametrize("name", ["test", "release"])
def test_workflows_run_what_exists(name):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    steps = [step for job in yaml.safe_load(text)["jobs"].values() for step in job["steps"]]
    commands = [step["run"] for step in steps if "run" in step]
    paths = {word for command in commands for word in command.split() if word.startswith(("scripts/", ".ci/"))}
    assert paths
    assert all((ROOT / path).is_file() for path in paths)
