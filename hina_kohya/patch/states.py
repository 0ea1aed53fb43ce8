"""What state a target is in: read only, told from the bytes of the file and never from its date or a note of ours."""

import dataclasses as dc
import enum
import shlex
import subprocess
import symtable
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from hina_kohya.patch import block
from hina_kohya.patch.swap import kept_original, leftovers
from hina_kohya.patch.targets import DISTRIBUTION, FILES, LYCORIS, SD_SCRIPTS, Target, find
from hina_kohya.trainers import syntax
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS as TRAINER


class State(enum.Enum):
    NOT_FOUND = "not found"
    NOT_PATCHED = "not patched"
    PATCHED = "patched"
    REPLACED = "patched earlier, but since upgraded or reinstalled"
    OTHER_LINES = "changed in the lines of hina-kohya"
    UNREADABLE = "no file that lines can be added to"
    UNHOOKABLE = "without the functions that the hooks wrap"


@dc.dataclass(frozen=True)
class Status:
    """One target as it is now.

    data   : the bytes of the file
    patched: whether lines of ours are in the file, as we put them there or not
    reasons: why it is neither patched nor reverted
    remarks: what else a user should know
    next   : the command to type, or what else to do
    """

    name: str
    state: State
    next: str
    target: Target | None = None
    file: Path | None = None
    data: bytes = dc.field(default=b"", repr=False)
    patched: bool = False
    reasons: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


def inspect(name: str, sd_scripts: str | Path | None = None) -> Status:
    """The state of one of TARGETS, found or not. Raises UserError where `sd_scripts` is no checkout."""
    target = find(name, sd_scripts)
    if target is None:
        missing = "pip install lycoris-lora" if name == LYCORIS else "add --sd-scripts PATH, or set SD_SCRIPTS_HOME"
        return Status(name, State.NOT_FOUND, missing)
    file = target.root / FILES[name]
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return Status(name, State.NOT_FOUND, _reinstall(target), target, remarks=(f"there is no {file}",))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; make it readable for this user") from error
    state, reasons = _identify(target, file, data)
    where = f" --sd-scripts {_quoted(str(sd_scripts))}" if name == SD_SCRIPTS and sd_scripts else ""
    following = _next(state, target, lambda action: f"hina-kohya patch {action} --target {name}{where}")
    patched = state is State.PATCHED or bool(block.lines_of_ours(data))
    remarks = tuple(_remarks(state, target, file, data))
    return Status(name, state, following, target, file, data, patched, reasons, remarks)


def taken_out(name: str, data: bytes) -> bytes | None:
    """A patched file without our lines, of this release or an earlier one; None for one that is not as we patch it."""
    heads = [head for lines in block.blocks(name) if (head := block.take_out(data, lines)) is not None]
    return heads[0] if heads and not block.lines_of_ours(heads[0]) else None


def warning(status: Status) -> str | None:
    """What to say where the patch could only warn, because the interpreter that runs the file lacks this package."""
    target = status.target
    if target is None or target.imports_us():
        return None
    install = f"{_quoted(target.python)} -m pip install hina-kohya"
    return f"{target.python} cannot import hina_kohya, so the patch would do nothing but warn; {install}"


def _identify(target: Target, file: Path, data: bytes) -> tuple[State, tuple[str, ...]]:
    """The state, and what speaks against patching."""
    if taken_out(target.name, data) is not None:
        return State.PATCHED, ()
    if ours := block.lines_of_ours(data):
        return State.OTHER_LINES, ("lines that name hina-kohya, without or beside one whole block at the end:", *ours)
    if reason := _unreadable(file, data):
        return State.UNREADABLE, (reason,)
    if reason := _without_function(target, file, data):
        return State.UNHOOKABLE, (reason,)
    # An apply that was cut off has left its staging copy, too; a reinstallation has not.
    replaced = kept_original(file).exists() and not leftovers(file)
    return State.REPLACED if replaced else State.NOT_PATCHED, ()


def _unreadable(file: Path, data: bytes) -> str | None:
    """Why no lines can be put after these."""
    try:
        _names(file, data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"it is not UTF-8: byte {error.object[error.start]:#04x} in line {line}"
    except SyntaxError as error:
        return f"it is not Python: {error.msg}, line {error.lineno or '?'}"
    except ValueError as error:  # of Python 3.10 and 3.11, for a zero byte
        return f"it is not Python: {error}"
    return None


def _without_function(target: Target, file: Path, data: bytes) -> str | None:
    """What the hooks need and do not find."""
    if target.name == LYCORIS:
        missing = "create_network" not in _names(file, data)
        return "it defines no create_network, which the hooks wrap" if missing else None
    functions = [path.replace(":", ".") for path in TRAINER.get_optimizer]
    try:
        missing = not any(syntax.home_of(path, [target.root]) for path in functions)
    except UserError as error:
        return str(error)
    return f"there is neither {' nor '.join(functions)}, which the hooks wrap" if missing else None


def _names(file: Path, data: bytes) -> set[str]:
    """What the module defines or imports at its top level."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a newer Python warns about escapes in their strings
        symbols = symtable.symtable(data.decode("utf-8-sig"), str(file), "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def _remarks(state: State, target: Target, file: Path, data: bytes) -> Iterator[str]:
    kept = kept_original(file)
    if state in (State.NOT_PATCHED, State.REPLACED) and not target.was_tried:
        yield f"nobody has tried the patch on {target.release} yet; apply tries it on a copy first"
    if state is State.PATCHED:
        before = taken_out(target.name, data)
        if block.take_out(data, block.blocks(target.name)[0]) is None:
            yield "by an earlier release of hina-kohya, whose lines work as well; for the new ones: revert, then apply"
        if before and not kept.exists():
            yield f"the kept original {kept.name} is gone; revert takes our lines out of the file instead"
        if kept.exists() and kept.read_bytes() != before:
            yield f"it was changed since it was patched, or {kept.name} was"
    elif state is not State.NOT_PATCHED and kept.exists():
        yield f"{kept.name} is the original of what was patched before"


def _next(state: State, target: Target, command: Callable[[str], str]) -> str:
    if state is State.PATCHED:
        return f"nothing; to undo: {command('revert')}"
    if state in (State.NOT_PATCHED, State.REPLACED):
        return command("apply")
    if state is State.UNHOOKABLE and target.name == SD_SCRIPTS:
        return "a dotted optimizer_type, such as hina_kohya.HinaAdamW, needs no hooks"
    newest = block.tried(LYCORIS)[-1] if state is State.UNHOOKABLE else None
    return f"{_reinstall(target, newest)}; then {command('apply')}"


def _reinstall(target: Target, version: str | None = None) -> str:
    """The command that brings the published file back."""
    if target.name == SD_SCRIPTS:
        checkout = f"git -C {_quoted(str(target.root))} checkout {FILES[SD_SCRIPTS]}"
        return checkout if target.version else f"take {FILES[SD_SCRIPTS]} from a new copy of sd-scripts"
    release = f"=={version or target.version}" if version or target.version else ""
    return f"{_quoted(target.python)} -m pip install --force-reinstall --no-deps {DISTRIBUTION}{release}"


def _quoted(word: str) -> str:
    return subprocess.list2cmdline([word]) if sys.platform == "win32" else shlex.quote(word)
