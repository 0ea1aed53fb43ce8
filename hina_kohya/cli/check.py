"""`hina-kohya check CONFIG.toml`: what is wrong with a training TOML, before a model is loaded."""

import argparse
import sys

from hina_kohya.cli import checkout
from hina_kohya.kohya.checking import report
from hina_kohya.kohya.checking.finding import Level
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.errors import UserError

EXAMPLE = """examples:
  hina-kohya check my_lokr.toml
  hina-kohya check my_lokr.toml --script sdxl_train_network.py --sd-scripts ~/sd-scripts
  hina-kohya check my_wan.toml --musubi ~/musubi-tuner
  hina-kohya check my_lokr.toml -- --learning_rate 1e-4        as on the trainer's command line, which wins

Exit code 0: no error; 1: training would fail or do something else; 2: the file cannot be read."""


def main(argv: list[str]) -> int:
    own, words = _split(argv)
    args = _parser().parse_args(own)
    try:
        found = report.check(
            args.config,
            words,
            checkout=checkouts.at(args.checkout, "--sd-scripts") if args.checkout else None,
            script=args.script,
            arch=args.arch,
            launched=args.launched,
        )
    except UserError as error:
        print(f"hina-kohya check: error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(report.text(found)), flush=True)
    failed = found.failed
    if not failed and found.architecture is not None:
        failed = not _forecast(found)
    print(report.next_step(found, failed))
    return int(failed)


def _forecast(found: report.Report) -> bool:
    """Prints the groups that will result; False where the network or the optimizer would refuse."""
    try:
        text, refused = report.forecast_table(found), False
    except UserError as error:
        refused = report.is_refusal(found, error)
        what = f"{Level.ERROR.value}: the network or its optimizer cannot be made" if refused else "no forecast"
        text = f"{what}: {error}"
    print(f"\n{text}\n")
    return not refused


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our words, and what follows `--`: the trainer's words."""
    position = argv.index("--") if "--" in argv else len(argv)
    return argv[:position], argv[position + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hina-kohya check",
        usage="hina-kohya check CONFIG.toml [--script NAME] [--sd-scripts PATH] [--arch NAME] [--launched] [-- WORDS]",
        description="Read a training TOML as sd-scripts or musubi-tuner does, and say what is wrong with it before a "
        "model is loaded: keys that would be ignored, arguments that would fail or do nothing, combinations known to "
        "be bad.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG.toml", help="the TOML of a run, or of its datasets")
    parser.add_argument("--script", help="the trainer, such as sdxl_train_network.py; told from the file if not given")
    checkout.add_option(parser)
    parser.add_argument(
        "--arch", help="the model, such as sd15, sdxl or sd3.5-medium; the trainer says which if not given"
    )
    parser.add_argument(
        "--launched", action="store_true", help="the run is started with hina-kohya launch, or -m hina_kohya.launch"
    )
    return parser
