"""`hina-kohya check CONFIG.toml`: what is wrong with a run, before a model is loaded."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from hina_kohya.check import printing, report
from hina_kohya.check.finding import Level
from hina_kohya.check.reading.command import is_command
from hina_kohya.cli import checkout
from hina_kohya.cli.parser import Parser
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.errors import UserError

EXAMPLE = """examples:
  hina-kohya check my_lokr.toml
  hina-kohya check my_lokr.toml --script sdxl_train_network.py --sd-scripts ~/sd-scripts
  hina-kohya check my_wan.toml --musubi ~/musubi-tuner
  hina-kohya check my_lokr.toml -- --learning_rate 1e-4        as on the trainer's command line, which wins
  hina-kohya check accelerate launch sdxl_train_network.py --network_module lycoris.kohya ...
  hina-kohya check train.sh                                    or .bat, .ps1, a JSON of the kohya_ss GUI

Exit code 0: no error; 1: training would stop or train nothing; 2: the file cannot be read; 3: a package is
missing here."""
# Our options with a value: what follows is no file.
_WITH_VALUE = ("--script", "--sd-scripts", "--musubi", "--arch", "--format")


def main(argv: list[str], with_next: bool = True) -> int:
    """with_next: print what to type next."""
    own, what, words = _split(argv)
    args = _parser().parse_args([*own, *what[:1]])
    try:
        result = report.check(
            what,
            words,
            checkout=checkouts.at(args.checkout, "--sd-scripts") if args.checkout else None,
            script=args.script,
            arch=args.arch,
            launched=args.launched,
        )
    except UserError as error:
        if args.format == "json":
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        else:
            print(f"hina-kohya check: error: {error}", file=sys.stderr)
        return error.exit_code
    as_json = args.format == "json"
    if not as_json:
        print("\n".join(printing.text(result, args.all)), flush=True)
    code, forecast = result.exit_code, None
    if code != 1 and result.architecture is not None and not args.no_forecast:
        forecast, is_refusal = _forecast(result)
        code = 1 if is_refusal else code
        if not as_json:
            print(f"\n{forecast}\n")
    if as_json:
        print(
            json.dumps(
                {**printing.as_json(result, code != 0, forecast), "exit_code": code}, ensure_ascii=False, indent=1
            )
        )
    elif with_next:
        print(printing.next_step(result, code != 0))
    return code


def _forecast(result: report.Report) -> tuple[str, bool]:
    """The groups that will result, and whether the network or the optimizer would refuse."""
    progress = _Progress() if sys.stderr.isatty() else None
    try:
        text, goes_on = report.forecast_of(result, progress)
        return text, not goes_on
    except UserError as error:
        is_refusal = report.is_refusal(result, error)
        what = f"{Level.ERROR.value}: the network or its optimizer cannot be made" if is_refusal else "no forecast"
        return f"{what}: {error}", is_refusal
    finally:
        if progress is not None:
            progress.clear()


_STAGES = {
    "starting": "torch is imported", "optimizer": "the optimizer is made",
    "network_module": "the network's code is imported",
    "network": "the network is made", "groups": "its groups are made", "state": "its state is measured",
    "done": "done",
}  # fmt: skip


class _Progress:
    """One line on a terminal, written over."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self({"stage": "starting"})

    def __call__(self, content: Mapping[str, Any]) -> None:
        seconds = time.perf_counter() - self.start
        print(f"\r\x1b[Kforecast: {_STAGES[content['stage']]}, {seconds:.0f} s", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _split(argv: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Our options, the file or command line, and what follows `--`: further words of the trainer.

    A command line goes on to its end: its options are the trainer's.
    """
    own: list[str] = []
    rest = list(argv)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        own.append(rest.pop(0))
        if own[-1] in _WITH_VALUE and rest:
            own.append(rest.pop(0))
    if rest and is_command(rest[0]):
        return own, rest, []
    position = rest.index("--") if "--" in rest else len(rest)
    return [*own, *rest[1:position]], rest[:1], rest[position + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hina-kohya check",
        usage="hina-kohya check [options] CONFIG.toml|COMMAND... [-- WORDS]",
        description="Read what a run of sd-scripts or musubi-tuner is started with as the trainer does, and say what "
        "is wrong with it before a model is loaded: keys that would be ignored, arguments that would fail or do "
        "nothing, combinations known to be bad.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "config", metavar="CONFIG.toml",
        help="the TOML of a run or of its datasets, a script of a shell, a JSON of kohya_ss, or a command line",
    )  # fmt: skip
    parser.add_argument("--script", help="the trainer, such as sdxl_train_network.py; told from the file if not given")
    checkout.add_option(parser)
    parser.add_argument(
        "--arch", help="the model, such as sd15, sdxl or sd3.5-medium; the trainer says which if not given"
    )
    parser.add_argument(
        "--launched", action="store_true", help="the run is started with hina-kohya launch, or -m hina_kohya.launch"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: for programs")
    parser.add_argument("--all", action="store_true", help="print every finding, however many there are")
    parser.add_argument("--no-forecast", action="store_true", help="do not make the network on a skeleton of the model")
    return parser
