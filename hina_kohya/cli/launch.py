"""`hina-kohya launch SCRIPT ...`: accelerate launch with the hooks installed, from any folder, after a check."""

import argparse
import subprocess
import sys
from pathlib import Path

from hina_kohya.check.schema import Schema
from hina_kohya.cli import check, checkout
from hina_kohya.cli.parser import Parser
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.checkouts import TRAINERS, Checkout
from hina_kohya.trainers.errors import UserError

DESCRIPTION = """accelerate launch with the hooks installed, from any folder, after `hina-kohya check` of its words.
What stands between `launch` and the script goes to accelerate, what follows the script goes to the script."""
EXAMPLE = """examples:
  hina-kohya launch sdxl_train_network.py --config_file my.toml
  hina-kohya launch --sd-scripts ~/sd-scripts --num_processes 2 train_network.py --config_file my.toml
  hina-kohya launch --musubi ~/musubi-tuner wan_train_network.py --config_file my.toml
  hina-kohya launch --no-check train_network.py --config_file my.toml      although the check objects"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya launch",
        usage="hina-kohya launch [--sd-scripts PATH] [--no-check] [accelerate's options] SCRIPT [the script's options]",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    checkout.add_option(parser)
    parser.add_argument("--no-check", action="store_true", help="start even where the check finds errors")
    before, script, after = _split(argv)
    args, for_accelerate = parser.parse_known_args(before)
    try:
        if script is None:
            raise UserError("which script? example: hina-kohya launch train_network.py --config_file my.toml")
        path = _found(script, args.checkout)
        if not args.no_check and (code := _checked(path, after)):
            print("not started; correct it, or add --no-check before the script", file=sys.stderr)
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


def _found(script: str, folder: str | None) -> Path:
    """A script here, or of the checkout that was given, or of one that can be found. Raises UserError."""
    if not folder and Path(script).is_file():
        return Path(script).resolve()
    if folder:
        candidates = [checkouts.at(folder, "--sd-scripts")]
    else:
        candidates = [home for trainer in TRAINERS if (home := checkouts.find(trainer)) is not None]
    if not candidates:
        homes = " or ".join(trainer.home for trainer in TRAINERS)
        raise UserError(f"there is no {script} here; add --sd-scripts PATH, or set {homes}")
    for home in candidates:
        if path := home.script(script):
            return path.resolve()
    places = " or ".join(str(home.root / home.trainer.script_folders[0] / script) for home in candidates)
    raise UserError(f"there is no script {places}; is it spelt right?")


def _checked(script: Path, arguments: list[str]) -> int:
    """0, or what `hina-kohya check` says of the words, with the config among them; of adapter trainers only."""
    if not any(script.match(trainer.scripts) for trainer in TRAINERS):
        print(f"{script.name} trains no adapter, so its options are not checked")
        return 0
    home = _checkout_of(script)
    try:
        Schema(home.trainer, home).options(script.name)
    except UserError as error:  # a fork may compute its options; that is no fault of the words
        print(f"not checked: {error}")
        return 0
    own = ["--sd-scripts", str(home.root), "--script", script.name, "--launched"]
    return check.main([*own, str(script), *arguments], with_next=False)


def _checkout_of(script: Path) -> Checkout:
    """The checkout that a script lies in. Raises UserError."""
    for folder in script.parents:
        for trainer in TRAINERS:
            if all((folder / name).is_file() for name in trainer.marks):
                return Checkout(trainer, folder)
    return checkouts.at(script.parent, "the folder")
