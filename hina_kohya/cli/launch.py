"""`hina-kohya launch SCRIPT ...`: accelerate launch with the hooks installed, from any folder, after a check."""

import argparse
import subprocess
import sys
from pathlib import Path

from hina_kohya.cli import check
from hina_kohya.kohya.targets import find_sd_scripts
from hina_kohya.trainers.errors import UserError

DESCRIPTION = """accelerate launch with the hooks installed, from any folder, after `hina-kohya check` of the config.
What stands between `launch` and the script goes to accelerate, what follows the script goes to the script."""
EXAMPLE = """examples:
  hina-kohya launch sdxl_train_network.py --config_file my.toml
  hina-kohya launch --sd-scripts ~/sd-scripts --num_processes 2 train_network.py --config_file my.toml
  hina-kohya launch --no-check train_network.py --config_file my.toml      although the check objects"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hina-kohya launch",
        usage="hina-kohya launch [--sd-scripts PATH] [--no-check] [accelerate's options] SCRIPT [the script's options]",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--sd-scripts",
        metavar="PATH",
        help="the checkout; otherwise SD_SCRIPTS_HOME, or the current folder or one above",
    )
    parser.add_argument("--no-check", action="store_true", help="start even where the check finds errors")
    before, script, after = _split(argv)
    args, for_accelerate = parser.parse_known_args(before)
    try:
        if script is None:
            raise UserError("which script? example: hina-kohya launch train_network.py --config_file my.toml")
        path = _found(script, args.sd_scripts)
        if not args.no_check and (code := _checked(path, after)):
            print("not started; correct the file, or add --no-check before the script", file=sys.stderr)
            return code
    except UserError as error:
        print(f"hina-kohya launch: error: {error}", file=sys.stderr)
        return error.exit_code
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *for_accelerate, "-m", "hina_kohya.launch"]
    with subprocess.Popen([*launcher, str(path), *after]) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the trainer has it, too, and may be saving
                continue


def _split(argv: list[str]) -> tuple[list[str], str | None, list[str]]:
    for number, word in enumerate(argv):
        if word.endswith(".py"):
            return argv[:number], word, argv[number + 1 :]
    return argv, None, []


def _found(script: str, sd_scripts: str | None) -> Path:
    if not sd_scripts and Path(script).is_file():
        return Path(script).resolve()
    checkout = find_sd_scripts(sd_scripts)
    if checkout is None:
        raise UserError(f"there is no {script} here; add --sd-scripts PATH, or set SD_SCRIPTS_HOME")
    if not (path := checkout.root / script).is_file():
        raise UserError(f"there is no script {path}; is it spelt right?")
    return path.resolve()


def _checked(script: Path, arguments: list[str]) -> int:
    """0, or what `hina-kohya check` says of the config file among the arguments. It knows the adapter trainers only."""
    if not script.name.endswith("train_network.py"):
        print(f"{script.name} trains no adapter, so its config file is not checked")
        return 0
    config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    config.add_argument("--config_file")
    known, rest = config.parse_known_args(arguments)
    if known.config_file is None:
        return 0
    words = [known.config_file, "--sd-scripts", str(script.parent), "--script", script.name, "--launched"]
    return check.main([*words, "--", *rest])
