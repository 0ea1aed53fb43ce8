"""Checkouts of the trainers on this machine: found and read without importing anything of theirs."""

import dataclasses as dc
import os
import sys
from pathlib import Path

from hina_kohya.trainers.call_sites import Outcome, Verdict, verdict
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

TRAINERS = (SD_SCRIPTS, MUSUBI)


@dc.dataclass(frozen=True)
class Checkout:
    """A folder that holds the source of a trainer."""

    trainer: Trainer
    root: Path

    @property
    def commit(self) -> str | None:
        """Read from the files of git; None for a download without."""
        return commit(self.root)

    @property
    def python(self) -> str:
        """The interpreter of the checkout's own virtual environment where it has one, else this one."""
        return python_of(self.root)

    @property
    def import_roots(self) -> tuple[Path, ...]:
        return tuple(self.root / folder for folder in self.trainer.import_folders)

    @property
    def scripts(self) -> list[Path]:
        """The scripts that train adapters."""
        return sorted((self.root / self.trainer.script_folders[0]).glob(self.trainer.scripts))

    def script(self, name: str) -> Path | None:
        """A script of the checkout by its name, whatever it trains."""
        paths = [self.root / folder / name for folder in self.trainer.script_folders]
        return next((path for path in paths if path.is_file()), None)

    def verdict(self, name: str) -> Verdict:
        """Whether the hooks act in one of its scripts."""
        script = self.script(name)
        if script is None:
            return Verdict(Outcome.NOT_LOOKED_AT, f"there is no {name} in {self.root}")
        return verdict(script, self.trainer, self.import_roots)


def at(path: str | Path, label: str = "") -> Checkout:
    """The checkout in a folder. Raises UserError where it is none; `label` is how the user named it."""
    root = Path(path).expanduser().absolute()
    for trainer in TRAINERS:
        if all((root / name).is_file() for name in trainer.marks):
            return Checkout(trainer, root)
    files = " or ".join(trainer.marks[0] for trainer in TRAINERS)
    raise UserError(f"{label} {path} is no checkout of sd-scripts or musubi-tuner: there is no {files}".strip())


def find(trainer: Trainer, path: str | Path | None = None) -> Checkout | None:
    """The checkout of one trainer: at `path`, else the one that its variable names, else this folder or one above.

    None where there is none, or where that at `path` is one of another trainer. Raises UserError.
    """
    if path:
        checkout = at(path, "--sd-scripts")
        return checkout if checkout.trainer is trainer else None
    if value := os.environ.get(trainer.home):
        checkout = at(value, trainer.home)
        if checkout.trainer is not trainer:
            raise UserError(f"{trainer.home} {value} is a checkout of {checkout.trainer.name}, not of {trainer.name}")
        return checkout
    here = Path.cwd()
    folders = [folder for folder in (here, *here.parents) if all((folder / name).is_file() for name in trainer.marks)]
    return Checkout(trainer, folders[0]) if folders else None


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
        pointer = git / "commondir"
        common = git / pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else git
        if (common / ref).is_file():
            return (common / ref).read_text(encoding="utf-8").strip()
        refs = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(" ")[0] for line in refs if line.endswith(f" {ref}")), None)


def python_of(checkout: Path) -> str:
    """The interpreter of the folder's own virtual environment where it has one, else this one."""
    for name in ("venv", ".venv"):
        for program in ("bin/python", "Scripts/python.exe"):
            python = checkout / name / program
            if python.is_file():
                is_inside = Path(sys.prefix).resolve() == (checkout / name).resolve()
                return sys.executable if is_inside else str(python)
    return sys.executable
