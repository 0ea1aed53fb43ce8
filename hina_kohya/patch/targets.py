"""Where LyCORIS and sd-scripts are on this machine, found without importing either."""

import dataclasses as dc
import importlib.util
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from hina_kohya.patch import block
from hina_kohya.trainers import checkouts, sd_scripts

LYCORIS = "lycoris"
SD_SCRIPTS = "sd-scripts"
TARGETS = (LYCORIS, SD_SCRIPTS)
FILES = {LYCORIS: "lycoris/kohya.py", SD_SCRIPTS: "library/__init__.py"}  # in the root of each
DISTRIBUTION = "lycoris-lora"
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

    @property
    def release(self) -> str:
        """Its name and version, as a reader knows them."""
        name, version = (DISTRIBUTION, self.version) if self.name == LYCORIS else (self.name, (self.version or "")[:12])
        return f"{name} {version}" if version else f"{name} of an unknown version"

    @property
    def was_tried(self) -> bool:
        """Whether the patch was tried on this very release."""
        releases = block.tried(self.name)
        if self.name == LYCORIS:
            return self.version in releases
        return any((self.version or "").startswith(commit) for commit in releases)

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
    checkout = checkouts.find(sd_scripts.SD_SCRIPTS, path)
    return None if checkout is None else Target(SD_SCRIPTS, checkout.root, checkout.commit, checkout.python)


def _lycoris_release(root: Path) -> str | None:
    """From the metadata beside the package; an editable install has it elsewhere."""
    for beside in distributions(name=DISTRIBUTION, path=[str(root)]):
        return beside.version
    try:
        return distribution(DISTRIBUTION).version
    except PackageNotFoundError:
        return None
