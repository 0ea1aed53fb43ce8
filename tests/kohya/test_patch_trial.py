"""The trial of a staged copy, in the Python that trains: what passes, what fails, and whose fault it is said to be."""

import importlib.metadata
import os
import py_compile
import shutil
import sys
from pathlib import Path

import pytest

from hina_kohya import patch
from hina_kohya.patch import block, targets, trial
from hina_kohya.patch.targets import FILES, LYCORIS, SD_SCRIPTS, Target
from hina_kohya.trainers.errors import UserError
from tests.support.children import VENV
from tests.support.patch_site import make_checkout, make_site, published

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_python")]
ROOT = Path(__file__).parents[2]
NETWORK = """
from torch import nn

class Network(nn.Module):
    def apply_to(self, *args):
        self.unet = nn.ModuleDict({"lora_down": nn.Linear(4, 2, bias=False), "lora_up": nn.Linear(2, 4, bias=False)})
    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        return [{"params": list(self.parameters()), "lr": unet_lr}]

def create_network(multiplier, dim, alpha, vae, text_encoder, unet, **kwargs):
    return Network()
"""


@pytest.fixture(autouse=True)
def _this_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, VENV))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def checkout(tmp_path):
    """A function that makes sd-scripts of what its file and a network module hold."""

    def checkout(library="", network=NETWORK):
        file = make_checkout(tmp_path / "checkout")
        file.write_text(library)
        (tmp_path / "checkout" / "networks").mkdir()
        (tmp_path / "checkout" / "networks" / "lora.py").write_text(network)
        return file

    return checkout


def apply(file):
    return patch.apply(patch.inspect(SD_SCRIPTS, file.parents[1]))


def refusal(file):
    """The message of a refusal, after which nothing is different, compiled files included."""
    folder = file.parents[1]
    before = {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}
    with pytest.raises(UserError) as refused:
        apply(file)
    assert {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")} == before
    return str(refused.value)


@pytest.mark.parametrize(
    "release", [pytest.param(importlib.metadata.version("lycoris-lora"), marks=pytest.mark.own_python), "9.0.0"]
)
def test_lycoris(tmp_path, monkeypatch, release):
    """The installed one, edited, under its own number and a coming one; another LyCORIS is nearer on the path."""
    file = make_site(tmp_path / "site", b"", release)
    installed = Path(str(importlib.metadata.distribution("lycoris-lora").locate_file("lycoris")))
    shutil.copytree(installed, file.parent, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    content = published() + b"MINE = __name__, __file__, __package__\n"
    file.write_bytes(content)
    make_site(tmp_path / "nearer", b"raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "nearer"), str(ROOT)]))
    target = Target(LYCORIS, tmp_path / "site", release, sys.executable)
    monkeypatch.setattr(targets, "find_lycoris", lambda: target)
    before = set(file.parent.rglob("*"))
    new = [] if release != "9.0.0" else ["nobody has tried the patch on lycoris-lora 9.0.0 before"]
    assert patch.apply(patch.inspect(LYCORIS)).splitlines() == [
        f"patched {file}",
        "tried on a copy first: imported, hooks active, 8 parameters in 2 groups",
        *new,
    ]
    assert set(file.parent.rglob("*")) - before == {file.with_name("kohya.py.hina-original")}
    assert file.read_bytes() == block.put_in(content, block.blocks(LYCORIS)[0])


def test_sd_scripts(checkout):
    file = checkout()
    tried = f"patched {file}\ntried on a copy first: imported, hooks active"
    assert apply(file).startswith(f"{tried}, 2 parameters in 1 group\n")
    patch.revert(patch.inspect(SD_SCRIPTS, file.parents[1]))
    (file.parents[1] / "networks" / "lora.py").write_text("import no_such_module\n")
    without = "; groups were not tried, since networks.lora does not import here: No module named 'no_such_module'\n"
    assert apply(file).startswith(tried + without)


def test_it_is_the_copy_that_is_tried_under_the_name_and_place_of_the_file(checkout, tmp_path, monkeypatch):
    """Neither a compiled file of the original nor a package of that name nearer on the path gets in between."""
    seen = tmp_path / "seen"
    file = checkout(f"open({str(seen)!r}, 'a').write(f'{{__name__}} {{__file__}} {{__path__}}')\n")
    nearer = make_checkout(tmp_path / "nearer")
    nearer.write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "nearer"), str(ROOT)]))
    py_compile.compile(str(file))
    assert "hooks active, 2 parameters" in apply(file)
    assert seen.read_text() == f"library {file} {[str(file.parent)]}"


def test_a_network_module_that_imports_what_makes_optimizers(checkout):
    file = checkout(network=f"import library.train_util\n{NETWORK}")
    assert "hooks active, 2 parameters" in apply(file)


UNHOOKED = "import sys\nname = 'hina' + '_kohya.trainers.hooks'\n__import__(name)\nsys.modules[name].install = {}\n"
# What library/__init__.py holds, what the network module has at its end, what is said.
FAILS_WITH_OUR_LINES = {
    "hooks that fail": (UNHOOKED.format("len"), "", "TypeError: len() takes exactly one argument (0 given)"),
    "hooks that do nothing": (UNHOOKED.format("dict"), "", "the hooks are not active after importing library"),
    "a module that is another in the end": (
        "import sys, types\nsys.modules[__name__] = types.ModuleType(__name__)\n",
        "",
        "the hooks are not active after importing library",
    ),
    "groups that hooks do not reach": (
        "",
        "Network.hina_options = None\n",
        "the hooks did not name the parameters and set the weight_decay of network_args",
    ),
}
FAILS_ALONE = {
    "an import": ("import no_such_module\n", "", "ModuleNotFoundError: No module named 'no_such_module'"),
    "an exit": ("raise SystemExit('good bye')\n", "", "good bye"),
    "an exit without a word": ("import os\nos._exit(3)\n", "", "it ended with exit code 3 and said nothing"),
    "an exit that looks well": ("import os\nos._exit(0)\n", "", "it ended with exit code 0 and said nothing"),
    "another signature": (
        "",
        "def create_network(*, network): ...\n",
        "TypeError: create_network() ",
    ),
    "a parameter that is forgotten": (
        "",
        "Network.prepare_optimizer_params = lambda self, a, b, c: [{'params': list(self.parameters())[:1]}]\n",
        "2 parameters are to be trained, and 1 are in the groups",
    ),
}


@pytest.mark.parametrize("case", FAILS_WITH_OUR_LINES)
def test_what_fails_with_our_lines_only_is_said_to_be_ours(checkout, case):
    library, network, reason = FAILS_WITH_OUR_LINES[case]
    file = checkout(library, NETWORK + network)
    message = refusal(file)
    assert message.startswith(f"a copy of {file} with our lines fails where the file itself does not: {reason}; ")
    assert "nothing was changed" in message
    assert "--network_module hina_kohya.lycoris needs no patch" in message


@pytest.mark.parametrize("case", FAILS_ALONE)
def test_what_fails_without_our_lines_is_not_said_to_be_ours(checkout, case):
    library, network, reason = FAILS_ALONE[case]
    message = refusal(checkout(library, NETWORK + network))
    assert message.startswith(
        f"{sys.executable} cannot try sd-scripts of an unknown version, with our lines or without: {reason}"
    )
    assert "nothing was changed; run it with the Python that trains" in message


def test_a_python_that_does_not_start_or_does_not_end(checkout, monkeypatch):
    file = checkout("import time\ntime.sleep(60)\n")
    missing = Target(SD_SCRIPTS, file.parents[1], None, str(file.parents[1] / "no-python"))
    with monkeypatch.context() as patched:
        patched.setattr(targets, "find_sd_scripts", lambda path: missing)
        assert f"cannot start {missing.python}: No such file or directory; nothing was changed" in refusal(file)
    monkeypatch.setattr(trial, "_SECONDS", 0.5)
    assert "did not import sd-scripts of an unknown version in 0.5 s; nothing was changed" in refusal(file)


@pytest.mark.skipif(sys.platform == "win32", reason="the interpreter is a shell script")
def test_a_python_without_this_package(checkout, tmp_path):
    """The lines do nothing there but warn, and `apply` says so; the file works all the same."""
    python = tmp_path / "checkout" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    python.chmod(0o755)
    assert "tried on a copy first: imported, without hooks; groups were not tried" in apply(checkout())


def test_the_double(tmp_path):
    copy = shutil.copytree(Path(__file__).parent / "double", tmp_path / "double")
    assert "imported, hooks active, " in apply(copy / FILES[SD_SCRIPTS])
