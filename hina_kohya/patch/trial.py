"""Has the Python that trains import a staged copy and make optimizer groups with it, before the copy is the file."""

import subprocess
from pathlib import Path

from hina_kohya.patch import trial_process
from hina_kohya.patch.targets import FILES, Target
from hina_kohya.trainers.errors import UserError

_SECONDS = 300  # the first import of torch from a slow disk takes a minute


def run(target: Target, staged: Path, file: Path) -> str:
    """What that Python made of the staged copy of `file`, in a few words. Raises UserError where it failed."""
    outcome, reason = attempt(target, staged)
    if outcome:
        return outcome
    # The same with the file as it is tells whose fault it is.
    if not attempt(target, file)[0]:
        raise UserError(
            f"{target.python} cannot try {target.release}, with our lines or without: {reason}; nothing was changed; "
            "run it with the Python that trains, and make that work first"
        )
    raise UserError(
        f"a copy of {file} with our lines fails where the file itself does not: {reason}; nothing was changed; "
        "take your own edits out of it, or report this; --network_module hina_kohya.lycoris needs no patch"
    )


def attempt(target: Target, source: Path) -> tuple[str, str]:
    """(what went well, or nothing; what went wrong)"""
    words = (target.name, str(target.root), FILES[target.name], str(source))
    command = [target.python, "-B", trial_process.__file__, *words]
    try:
        done = subprocess.run(
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
    outcomes = [line for line in done.stdout.splitlines() if line.startswith(trial_process.OUTCOME)]
    complaints = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reason = complaints[-1] if complaints else f"it ended with exit code {done.returncode} and said nothing"
    return outcomes[-1].removeprefix(trial_process.OUTCOME) if outcomes and done.returncode == 0 else "", reason
