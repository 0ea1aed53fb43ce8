"""Apply and revert: everything is verified in memory first, then the file is swapped."""

from pathlib import Path

from hina_kohya.patch import newlines, swap, unified
from hina_kohya.patch.manifest import Known
from hina_kohya.patch.states import MOST, State, Status, explanation
from hina_kohya.trainers.errors import UserError


def apply(told: Status) -> str:
    """Patches a target; what was done, in a few words. Raises UserError, with the file as it was."""
    file, known = _patchable(told)
    if told.state is State.PATCHED:
        swap.tidy(file, forget_original=False)
        return f"already patched, nothing to do: {file}"
    original = file.read_bytes()
    patched = _changed(known, original)
    # An empty original is kept by knowing that it was empty.
    swap.replace(file, patched, keep=original or None)
    return f"patched {file}"


def revert(told: Status) -> str:
    """Brings the original back byte for byte; what was done. Raises UserError, with the file as it was."""
    if told.file and not told.patched:
        swap.tidy(told.file, forget_original=told.known is not None)
        forgot = " (removed the original of what was patched before)" if told.state is State.REPLACED else ""
        return f"not patched, nothing to do: {told.file}{forgot}"
    file, known = _patchable(told)
    kept = swap.kept_original(file)
    if not kept.exists():
        swap.replace(file, _changed(known, file.read_bytes(), reverse=True))
    elif known.is_before(kept.read_bytes()):
        swap.restore(file)
    else:
        raise UserError(f"{kept} is not the original any more; delete it, and revert takes our lines out instead")
    return f"reverted {file}"


def preview(told: Status) -> str:
    """What apply would change, as a unified diff; empty where it is done. Raises UserError naming every difference."""
    if told.state is State.PATCHED:
        return ""
    return _patchable(told, most=None)[1].patch


def _changed(known: Known, data: bytes, reverse: bool = False) -> bytes:
    """The data with the patch in or out, verified, in its own line endings."""
    try:
        lines = unified.lines_of(newlines.to_lf(data).decode("utf-8"))
        lines = unified.apply(known.patch, lines, reverse=reverse)
    except ValueError as error:
        raise _damaged(known) from error
    result = newlines.from_lf("".join(f"{line}\n" for line in lines).encode("utf-8"), newlines.style(data))
    if not (known.is_before if reverse else known.is_after)(result):
        raise _damaged(known)
    return result


def _damaged(known: Known) -> UserError:
    return UserError(f"the files in {known.folder} are not as published; reinstall hina-kohya")


def _patchable(told: Status, most: int | None = MOST) -> tuple[Path, Known]:
    """The file and what it is. Raises UserError where that is not known to the byte, with all that differs."""
    if told.file and told.known:
        return told.file, told.known
    if told.closest is None:
        raise UserError("; ".join([f"{told.name} is not found", *told.remarks, told.next]))
    first = f"{told.file} is {told.state.value}, and was left as it is."
    raise UserError("\n".join([first, *explanation(told, most), f"next: {told.next}"]))
