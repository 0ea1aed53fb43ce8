"""`hina-kohya patch status|diff|apply|revert`: our hooks inside LyCORIS and sd-scripts, and out again."""

import argparse
import sys

from hina_kohya import patch
from hina_kohya.cli import checkout
from hina_kohya.cli.parser import Parser
from hina_kohya.patch import Status
from hina_kohya.patch.targets import TARGETS
from hina_kohya.trainers.errors import UserError

DESCRIPTION = """our hooks inside LyCORIS and sd-scripts, and out again:
  status   what is found, its version, whether it is patched, and what to type next; changes nothing
  diff     what apply would change, or why it would not
  apply    patch, where a trial on a copy goes well; the original is kept beside the file
  revert   bring the original back, byte for byte"""
EXAMPLE = """examples:
  hina-kohya patch status
  hina-kohya patch apply --target lycoris
  hina-kohya patch apply --sd-scripts ~/sd-scripts
  hina-kohya patch revert                              everything that is patched"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya patch",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--target", choices=TARGETS, help="only this one; otherwise all that are found")
    checkout.add_option(parser)
    args = parser.parse_args(argv)
    code, acted = 0, False
    for name in [args.target] if args.target else TARGETS:
        try:
            status = patch.inspect(name, args.checkout)
            # What is not there is an error where it was asked for, or where nothing else is there.
            if status.target is None and not args.target and args.action != "status":
                print(f"{name}: not found; {status.next}")
                continue
            acted = True
            print(ACTIONS[args.action](status))
        except UserError as error:
            print(f"hina-kohya patch: error: {error}", file=sys.stderr)
            code = error.exit_code
    return code if acted or code else UserError.exit_code


def _status(status: Status) -> str:
    version = f" {status.target.version or '(unknown version)'}" if status.target else ""
    lines = [f"{status.name}{version}: {status.state.value}"]
    lines += [f"  {status.file}"] if status.file else []
    lines += [f"  {line}" for line in (*status.reasons, *status.remarks, *_warning(status))]
    return "\n".join([*lines, f"  next: {status.next}"])


def _diff(status: Status) -> str:
    return patch.preview(status).rstrip("\n") or f"{status.name}: already patched, nothing to apply"


def _apply(status: Status) -> str:
    return "\n  ".join([*f"{status.name}: {patch.apply(status)}".splitlines(), *_warning(status)])


def _revert(status: Status) -> str:
    return f"{status.name}: {patch.revert(status)}"


def _warning(status: Status) -> list[str]:
    warning = patch.warning(status)
    return [warning] if warning else []


ACTIONS = {"status": _status, "diff": _diff, "apply": _apply, "revert": _revert}
