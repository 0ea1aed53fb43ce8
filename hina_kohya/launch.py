"""`accelerate launch -m hina_kohya.launch train_network.py ...`: a trainer of sd-scripts, with the hooks installed."""

import os
import runpy
import sys
from pathlib import Path

from hina_kohya.trainers import hooks
from hina_kohya.trainers.errors import UserError


def find(script: str) -> Path:
    """A script as given, or by its name in SD_SCRIPTS_HOME. Raises UserError."""
    home = os.environ.get("SD_SCRIPTS_HOME")
    tried = [Path(script), *([Path(home) / script] if home else [])]
    for path in tried:
        if path.is_file():
            return path.resolve()
    hint = "" if home else "; set SD_SCRIPTS_HOME to the folder of sd-scripts, or give the script's full path"
    raise UserError(f"there is no script {' or '.join(map(str, tried))}{hint}")


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        raise UserError(
            "what to run? example: accelerate launch -m hina_kohya.launch train_network.py --config_file my.toml"
        )
    script = find(argv[0])
    sys.argv = [str(script), *argv[1:]]
    sys.path[0] = str(script.parent)  # as `python train_network.py` has it
    hooks.install()
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"hina-kohya: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
