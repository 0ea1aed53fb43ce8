"""Has the Python that trains import a staged copy and make optimizer groups with it, before the copy is the file."""

import subprocess
from pathlib import Path

from hina_kohya.patch import trial_process
from hina_kohya.patch.targets import FILES, Target
from hina_kohya.trainers.errors import UserError

_SECONDS = 300  # the first import of torch from a slow disk takes a minute


def run(target: Target, staged: Path, file: Path) -> str:
    """What that Python made of the staged copy of `file`, in a few words. Raises UserError where it failed."""
    done = _process(target, staged)
    if done.returncode == 0:
        lines = [line for line in done.stdout.splitlines() if line.startswith(trial_process.OUTCOME)]
        return lines[-1].removeprefix(trial_process.OUTCOME)
    reason = _last_line(done.stderr)
    # The same with the file as it is tells whose fault it is.
    if _process(target, file).returncode:
        raise UserError(
            f"{target.python} cannot try {target.release}, with our lines or without: {reason}; nothing was changed; "
            f"run it with the Python that trains, and make that work first"
        )
    raise UserError(
        f"a copy of {file} with our lines fails where the file itself does not: {reason}; nothing was changed; "
        "take your own edits out of it, or report this; --network_module hina_kohya.lycoris needs no patch"
    )


def _process(target: Target, source: Path) -> subprocess.CompletedProcess[str]:
    words = (target.name, str(target.root), FILES[target.name], str(source))
    command = [target.python, "-B", trial_process.__file__, *words]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            check=False,
            cwd=target.root.anchor,
            encoding="utf-8",
            errors="replace",
            timeout=_SECONDS,
        )
    except OSError as error:
        raise UserError(f"cannot start {target.python}: {error.strerror}; nothing was changed; repair it") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"{target.python} did not import {target.release} in {_SECONDS} s; nothing was changed; try again"
        ) from error


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")
