"""Where LyCORIS and sd-scripts are on this machine, found without importing either."""

import dataclasses as dc
import importlib.util
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from hina_kohya.trainers.errors import UserError

LYCORIS = "lycoris"
SD_SCRIPTS = "sd-scripts"
TARGETS = (LYCORIS, SD_SCRIPTS)
_DISTRIBUTION = "lycoris-lora"
_CHECKOUT_HAS = ("train_network.py", "library/train_util.py")
_FIND_US = "import importlib.util, sys; sys.exit(importlib.util.find_spec('hina_kohya') is None)"


@dc.dataclass(frozen=True)
class Target:
    """Something of somebody else's that is installed.

    root   : the folder in which it lies: site-packages, or the checkout itself
    version: release of LyCORIS, commit of sd-scripts; None where nothing says
    python : the interpreter that will run it
    """

    name: str
    root: Path
    version: str | None
    python: str

    def imports_us(self) -> bool:
        """Whether that interpreter can import hina_kohya from any folder, and not just from ours."""
        try:
            found = subprocess.run([self.python, "-c", _FIND_US], cwd=self.root.anchor, check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return False
        return found.returncode == 0


def find(name: str, sd_scripts: str | Path | None = None) -> Target | None:
    """One of TARGETS, or None where there is none. `sd_scripts` is what the user gave. Raises UserError."""
    return find_lycoris() if name == LYCORIS else find_sd_scripts(sd_scripts)


def find_lycoris() -> Target | None:
    """The package that `import lycoris` would take in this interpreter."""
    spec = importlib.util.find_spec("lycoris")  # of a top-level name: imports nothing
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations))).parent
    return Target(LYCORIS, root, _lycoris_release(root), sys.executable)


def find_sd_scripts(path: str | Path | None = None) -> Target | None:
    """The checkout at `path`, else at SD_SCRIPTS_HOME, else the current folder or one above. Raises UserError."""
    given, said_by = (path, "--sd-scripts") if path else (os.environ.get("SD_SCRIPTS_HOME"), "SD_SCRIPTS_HOME")
    if given:
        root = Path(given).expanduser().absolute()
        if missing := [name for name in _CHECKOUT_HAS if not (root / name).is_file()]:
            raise UserError(f"{said_by} {given} is no checkout of sd-scripts: there is no {root / missing[0]}")
    else:
        here = Path.cwd()
        folders = (here, *here.parents)
        found = [folder for folder in folders if all((folder / name).is_file() for name in _CHECKOUT_HAS)]
        if not found:
            return None
        root = found[0]
    return Target(SD_SCRIPTS, root, commit(root), _python_of(root))


def commit(checkout: Path) -> str | None:
    """The commit that a git checkout or worktree is at, read from its files; None for a download without git."""
    try:
        git = checkout / ".git"
        if git.is_file():  # a worktree or submodule points to its folder
            git = checkout / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return head
        ref = head.removeprefix("ref: ")
        shared = git / "commondir"
        common = git / shared.read_text(encoding="utf-8").strip() if shared.is_file() else git
        if (common / ref).is_file():
            return (common / ref).read_text(encoding="utf-8").strip()
        packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(" ")[0] for line in packed if line.endswith(f" {ref}")), None)


def _lycoris_release(root: Path) -> str | None:
    """From the metadata beside the package; an editable install has it elsewhere."""
    for beside in distributions(name=_DISTRIBUTION, path=[str(root)]):
        return beside.version
    try:
        return distribution(_DISTRIBUTION).version
    except PackageNotFoundError:
        return None


def _python_of(checkout: Path) -> str:
    """The checkout's own virtual environment where it has one, else this interpreter."""
    for name in ("venv", ".venv"):
        for program in ("bin/python", "Scripts/python.exe"):
            python = checkout / name / program
            if python.is_file():
                inside = Path(sys.prefix).resolve() == (checkout / name).resolve()
                return sys.executable if inside else str(python)
    return sys.executable
