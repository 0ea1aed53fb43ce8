"""Apply and revert: tried on a copy or verified in memory first, then the file is swapped."""

from pathlib import Path

from hina_kohya.patch import block, swap, trial
from hina_kohya.patch.states import State, Status, taken_out
from hina_kohya.patch.targets import FILES, Target
from hina_kohya.trainers.errors import UserError


def apply(status: Status) -> str:
    """Patches a target; what was done and tried, a line each. Raises UserError, with the file as it was."""
    file, target, data = _fit(status)
    if status.state is State.PATCHED:
        swap.tidy(file)
        return f"already patched, nothing to do: {file}"
    with swap.staging(file, block.put_in(data, block.blocks(target.name)[0])) as staged:
        outcome = trial.run(target, staged, file)
        # An empty original is kept by knowing that it was empty.
        swap.put(staged, file, keep=data or None)
    lines = [f"patched {file}", f"tried on a copy first: {outcome}"]
    if not target.was_tried:
        lines.append(f"nobody has tried the patch on {target.release} before")
    return "\n".join(lines)


def revert(status: Status) -> str:
    """Brings the original back byte for byte; what was done. Raises UserError, with the file as it was."""
    if status.file and not status.patched:
        return f"not patched, nothing to do: {status.file}{_forget(status.file)}"
    file, target, data = _fit(status)
    before, kept = taken_out(target.name, data), swap.kept_original(file)
    assert before is not None  # or _fit had refused it
    if not kept.exists():
        with swap.staging(file, before) as staged:
            swap.put(staged, file)
    elif kept.read_bytes() == before:
        swap.restore(file)
    else:
        raise UserError(
            f"{kept} is not the original any more, or {file.name} was changed since it was patched; both were left as "
            f"they are; delete {kept.name}, and revert takes our lines out of {file.name} as it is now"
        )
    return f"reverted {file}"


def preview(status: Status) -> str:
    """What apply would change, as a unified diff; empty where it is done. Raises UserError naming what it refuses."""
    _, target, data = _fit(status)
    if status.state is State.PATCHED:
        return ""
    return block.diff(data, block.put_in(data, block.blocks(target.name)[0]), FILES[target.name])


def _forget(file: Path) -> str:
    """Clears away what earlier runs left beside a file that is not patched; in words what of that matters."""
    swap.tidy(file)
    kept = swap.kept_original(file)
    if not kept.exists():
        return ""
    if kept.read_bytes() != file.read_bytes():
        return f" ({kept} is the original of what was patched before; delete it if you do not need it)"
    swap.tidy(file, forget_original=True)
    return " (removed the original of what was patched before)"


def _fit(status: Status) -> tuple[Path, Target, bytes]:
    """The file, what it belongs to and its bytes. Raises UserError where it is not one to patch or to revert."""
    if status.file is None or status.target is None:
        raise UserError("; ".join([f"{status.name} is not found", *status.remarks, status.next]))
    if status.reasons:
        first = f"{status.file} is {status.state.value}, and was left as it is."
        raise UserError("\n".join([first, *status.reasons, f"next: {status.next}"]))
    data = status.file.read_bytes()
    if data != status.data:
        raise UserError(f"{status.file} was changed by somebody else just now, and was left as it is; try again")
    return status.file, status.target, data
