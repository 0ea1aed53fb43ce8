"""`hina-kohya doctor`: versions, hashes, what is active, and what is known to break in this environment."""

import argparse
import hashlib
import sys
from collections.abc import Iterator

from hina_kohya.kohya.environment import Environment, look
from hina_kohya.kohya.patching import State, Status
from hina_kohya.trainers.errors import UserError

EXAMPLE = """example:
  hina-kohya doctor --sd-scripts ~/sd-scripts

Exit status: 0 in order, 1 something is wrong here, 2 the command was wrong."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hina-kohya doctor",
        description="Versions, hashes, what is active, and what is known to break in this environment.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--sd-scripts",
        metavar="PATH",
        help="the checkout; otherwise SD_SCRIPTS_HOME, or the current folder or one above",
    )
    try:
        found = look(parser.parse_args(argv).sd_scripts)
    except UserError as error:
        print(f"hina-kohya doctor: error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(_lines(found)))
    return int(bool(found.problems))


def _lines(found: Environment) -> Iterator[str]:
    yield f"Python {found.python}   {sys.prefix}"
    width = max(len(package.name) for package in found.packages)
    for package in found.packages:
        asked = f"sd-scripts asks for {package.pinned}" if package.pinned and not package.fits else ""
        yield f"  {package.name:{width}}  {package.version or 'missing':14}  {asked}".rstrip()
    for told in found.targets:
        yield from _target(told)
    patched = [told.name for told in found.targets if told.state is State.PATCHED]
    yield (
        f"hooks: active by the patch of {' and '.join(patched)}"
        if patched
        else ("hooks: active where a command asks for them (--network_module hina_kohya.lycoris, hina-kohya launch)")
    )
    for package, names in found.optimizers.items():
        yield f"optimizers of {package}: {', '.join(names)}"
    yield from _listed("known to break", found.known)
    yield from _listed("wrong here", found.problems) if found.problems else ["nothing is wrong here"]


def _target(told: Status) -> Iterator[str]:
    version = (told.target.version or "")[:12] or "unknown version" if told.target else ""
    yield f"{told.name} {version}".rstrip() + f": {told.state.value}"
    if told.file and told.file.is_file():
        yield f"  {told.file}  sha256 {hashlib.sha256(told.file.read_bytes()).hexdigest()[:12]}"


def _listed(title: str, lines: tuple[str, ...]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  - {line}" for line in lines)
