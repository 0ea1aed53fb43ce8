"""The patches on every published release of LyCORIS, and on every tag of sd-scripts where there is a clone."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
import warnings
from pathlib import Path

import pytest

from hina_kohya.patch import block
from hina_kohya.patch.targets import LYCORIS

ROOT = Path(__file__).parents[2]
PATCH = "import sys; from hina_kohya.cli.patch import main; sys.exit(main(sys.argv[1:]))"
PIP = ("-m", "pip", "--disable-pip-version-check")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="the matrix needs fork")]


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, **options)


@pytest.fixture(scope="module", autouse=True)
def _package_index():
    asked = run(sys.executable, *PIP, "--retries", "0", "index", "versions", "lycoris-lora")
    if re.search("connection|name resolution|timed out", asked.stderr):
        pytest.skip("no package index can be reached")


def test_every_release_and_every_tag(tmp_path):
    clone = os.environ.get("SD_SCRIPTS_HOME")
    tags = ["--sd-scripts", clone] if clone and Path(clone, ".git").exists() else []
    paths = os.pathsep.join((str(ROOT), os.environ["PYTHONPATH"]))  # this checkout, without peft
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    # A release of tomorrow must not turn today's commits red: it is a warning here, and tried by the script itself.
    words = ["--known", "--releases", str(tmp_path), *tags]
    done = run(sys.executable, "scripts/patch_matrix.py", *words, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    for line in done.stderr.splitlines():
        if "was never tried" in line:
            warnings.warn(line, stacklevel=1)
    assert done.stdout.count("sd-scripts v") >= 28 * bool(tags)
    rows = [line for line in done.stdout.splitlines() if line.startswith("lycoris-lora ")]
    assert [row.split()[1].rstrip(":") for row in rows] == list(block.tried(LYCORIS))
    decay = "; decay dora_scale 0, lokr_w1 0.1, lokr_w2 0.1, lokr_w2_a 0.1, lokr_w2_b 0.1, lora_down 0.1, lora_up 0.1; "
    assert all(row.endswith(f"imported, hooks active, 8 parameters in 2 groups{decay}reverted") for row in rows)


def test_an_upgrade_under_the_patch_is_noticed(tmp_path):
    venv.create(tmp_path, with_pip=True)
    python = str(tmp_path / "bin" / "python")
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path), "platbase": str(tmp_path)}))
    # This package and what it needs, found after the LyCORIS of the new environment.
    (packages / "zz.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")

    def patch(*words):
        done = subprocess.run([python, "-c", PATCH, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(*words):
        done = run(python, *PIP, "install", "--no-deps", *words)
        assert done.returncode == 0, done.stderr

    install("lycoris-lora==3.4.0")
    original = (packages / "lycoris" / "kohya.py").read_bytes()
    patch("apply", "--target", "lycoris")
    assert (packages / "lycoris" / "kohya.py").read_bytes() != original
    assert "lycoris 3.4.0: patched\n" in patch("status", "--target", "lycoris")
    install("--upgrade", "lycoris-lora==4.1.3")
    said = patch("status", "--target", "lycoris")
    assert "lycoris 4.1.3: patched earlier, but since upgraded or reinstalled\n" in said
    assert "kohya.py.hina-original is the original of what was patched before" in said
    assert "next: hina-kohya patch apply --target lycoris\n" in said
    patch("apply", "--target", "lycoris")
    assert "lycoris 4.1.3: patched\n" in patch("status", "--target", "lycoris")
    patch("revert", "--target", "lycoris")
    assert "lycoris 4.1.3: not patched\n" in patch("status", "--target", "lycoris")
