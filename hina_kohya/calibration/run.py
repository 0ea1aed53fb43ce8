"""Calibrate: start the run in a process of its own, and come back with its metric."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hina_kohya.calibration import EMBEDDED
from hina_kohya.calibration.plan import plan_of
from hina_kohya.loras.metric import beside
from hina_kohya.trainers.errors import UserError


def calibrate(
    adapter: Path,
    config: Path,
    steps: int,
    checkout: str | None = None,
    script: str | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Path:
    """The metric file of an adapter, by `steps` steps of the run of a configuration. Raises UserError."""
    if steps < 1:
        raise UserError(f"--calibrate-steps {steps} must be at least 1")
    plan, metric = plan_of(config, checkout, script), beside(adapter)
    name = "the embedded trainer" if plan.script == EMBEDDED else Path(plan.script).name
    say(f"calibrating: {steps} steps of {name} ({plan.why}), which change nothing")
    with plan.words(adapter, steps) as words:
        command = [sys.executable, "-m", "hina_kohya.calibration.inside", str(adapter), str(metric), *words]
        code = subprocess.run(command, check=False).returncode
    if code:
        raise UserError(f"the calibration run ended with code {code}, as it says above; nothing was written")
    return metric
