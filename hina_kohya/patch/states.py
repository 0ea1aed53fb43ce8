"""What state a target is in: read only, told from the bytes of the file and never from its date or a note of ours."""

import dataclasses as dc
import enum
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from hina_kohya.patch import newlines
from hina_kohya.patch.differences import differences
from hina_kohya.patch.manifest import FOLDERS, OURS, Known, known
from hina_kohya.patch.swap import kept_original, leftovers
from hina_kohya.patch.targets import LYCORIS, SD_SCRIPTS, Target, find
from hina_kohya.trainers.errors import UserError

MOST = 20  # lines of a difference, where not all are asked for


class State(enum.Enum):
    NOT_FOUND = "not found"
    NOT_PATCHED = "not patched"
    PATCHED = "patched"
    REPLACED = "patched earlier, but since upgraded or reinstalled"
    CHANGED = "changed locally"
    UNKNOWN = "unknown version"


@dc.dataclass(frozen=True)
class Status:
    """One target as it is now.

    known     : the published content that the file has, or had before the patch
    patched   : whether lines of ours are in the file, changed locally or not
    difference: of a file that is not as published: which of its lines
    closest   : the published file that the difference was taken against
    remarks   : what else a user should know
    next      : the command to type, or what else to do
    """

    name: str
    state: State
    next: str
    target: Target | None = None
    file: Path | None = None
    known: Known | None = None
    patched: bool = False
    difference: tuple[str, ...] = ()
    closest: Known | None = None
    remarks: tuple[str, ...] = ()


def inspect(name: str, sd_scripts: str | Path | None = None) -> Status:
    """The state of one of TARGETS, found or not. Raises UserError where `sd_scripts` is no checkout."""
    target = find(name, sd_scripts)
    if target is None:
        missing = "pip install lycoris-lora" if name == LYCORIS else "add --sd-scripts PATH, or set SD_SCRIPTS_HOME"
        return Status(name, State.NOT_FOUND, missing)
    file = target.root / known(name)[0].file
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return Status(name, State.NOT_FOUND, _reinstall(target), target, remarks=(f"there is no {file}",))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; make it readable for this user") from error
    told = _identify(target, file, data)
    where = f" --sd-scripts {_quoted(str(sd_scripts))}" if name == SD_SCRIPTS and sd_scripts else ""
    following = _next(told.state, target, lambda action: f"hina-kohya patch {action} --target {name}{where}")
    return dc.replace(told, next=following, remarks=tuple(_remarks(told, target, kept_original(file))))


def _identify(target: Target, file: Path, data: bytes) -> Status:
    told = Status(target.name, State.NOT_PATCHED, "", target, file, patched=OURS in data)
    if newlines.style(data) != newlines.MIXED:
        for one in known(target.name):
            if one.is_after(data):
                return dc.replace(told, state=State.PATCHED, known=one)
            if one.is_before(data):
                # An apply that was cut off has left its staging copy, too; a reinstallation has not.
                replaced = kept_original(file).exists() and not leftovers(file)
                return dc.replace(told, state=State.REPLACED if replaced else State.NOT_PATCHED, known=one)
    same = [one for one in known(target.name) if one.everything or target.version in one.versions]
    compared = [
        (differences(data, one.patched_hashes if told.patched else one.hashes), one)
        for one in same or known(target.name)
    ]
    difference, closest = min(compared, key=lambda pair: len(pair[0]))
    state = State.CHANGED if same or told.patched else State.UNKNOWN
    return dc.replace(told, state=state, difference=difference, closest=closest)


def explanation(told: Status, most: int | None = MOST) -> list[str]:
    """What a file that is not as published was compared with, and in which lines it differs."""
    if told.closest is None or told.target is None:
        return []
    lines = []
    if told.state is State.UNKNOWN:
        versions = ", ".join(one.covered for one in known(told.name))
        lines.append(f"This is version {told.target.version or '?'}. There are patches for {versions}.")
    what = "patched file" if told.patched else "file"
    lines.append(f"Compared with the published {what} of {told.closest.covered}:")
    lines += [f"  {line}" for line in told.difference[:most]]
    if most and len(told.difference) > most:
        lines.append(f"  and {len(told.difference) - most} more, all of them in: hina-kohya patch diff")
    return lines


def warning(told: Status) -> str | None:
    """What to say where the patch could only warn, because the interpreter that runs the file lacks this package."""
    target = told.target
    if target is None or target.imports_us():
        return None
    install = f"{_quoted(target.python)} -m pip install hina-kohya"
    return f"{target.python} cannot import hina_kohya, so the patch would do nothing but warn; {install}"


def _remarks(told: Status, target: Target, kept: Path) -> Iterator[str]:
    if told.known and not told.known.everything and target.version not in told.known.versions:
        yield f"version {target.version}, but the file is that of {told.known.covered}"
    if told.state is State.PATCHED and told.known and told.known.hashes and not kept.exists():
        yield f"the kept original {kept.name} is gone; revert takes our lines out of the file instead"
    if not told.patched and told.state is not State.NOT_PATCHED and kept.exists():
        earlier = [one.covered for one in known(told.name) if one.is_before(kept.read_bytes())]
        yield f"what was patched was {earlier[0] if earlier else 'an unknown version'}: {kept.name} is its original"


def _next(state: State, target: Target, command: Callable[[str], str]) -> str:
    if state is State.PATCHED:
        return f"nothing; to undo: {command('revert')}"
    if state in (State.NOT_PATCHED, State.REPLACED):
        return command("apply")
    if state is State.CHANGED:
        return f"{_reinstall(target)}; then {command('apply')}"
    newest = known(target.name)[-1].versions[-1]
    return f"--network_module hina_kohya.lycoris needs no patch; or {_reinstall(target, newest)}"


def _reinstall(target: Target, version: str | None = None) -> str:
    """The command that brings the published file back."""
    if target.name == SD_SCRIPTS:
        file = known(target.name)[0].file
        return f"git -C {_quoted(str(target.root))} checkout {file}" if target.version else f"make {file} empty"
    release = f"=={version or target.version}" if version or target.version else ""
    return f"{_quoted(target.python)} -m pip install --force-reinstall --no-deps {FOLDERS[target.name]}{release}"


def _quoted(word: str) -> str:
    return subprocess.list2cmdline([word]) if sys.platform == "win32" else shlex.quote(word)
