"""`hina-kohya doctor`: versions, hashes, what is active, and what is known to break in this environment."""

import argparse
import hashlib
import platform
import sys
from collections.abc import Iterator

from hina_kohya import __version__
from hina_kohya.check.environment import Environment, Sites, look
from hina_kohya.cli import checkout
from hina_kohya.cli.parser import Parser
from hina_kohya.patch import State, Status
from hina_kohya.trainers.call_sites import Outcome
from hina_kohya.trainers.errors import UserError

EXAMPLE = """example:
  hina-kohya doctor --sd-scripts ~/sd-scripts
  hina-kohya doctor --musubi ~/musubi-tuner

Exit status: 0 in order, 1 something is wrong here, 2 the command was wrong."""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya doctor",
        description="Versions, hashes, what is active, and what is known to break in this environment.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    checkout.add_option(parser)
    try:
        environment = look(parser.parse_args(argv).checkout)
    except UserError as error:
        print(f"hina-kohya doctor: error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(_lines(environment)))
    return int(bool(environment.problems))


def _lines(environment: Environment) -> Iterator[str]:
    yield f"hina-kohya {__version__}   {platform.platform()}"
    yield f"Python {environment.python}   {sys.prefix}"
    width = max(len(package.name) for package in environment.packages)
    for package in environment.packages:
        remark = f"the trainer asks for {package.pinned}" if package.pinned and not package.fits else ""
        yield f"  {package.name:{width}}  {package.version or 'missing':14}  {remark}".rstrip()
    for status in environment.targets:
        yield from _target(status)
    patched = [status.name for status in environment.targets if status.state is State.PATCHED]
    if patched:
        yield f"hooks: installed by the patch of {' and '.join(patched)}"
    else:
        yield "hooks: installed where a command asks for them (--network_module hina_kohya.lycoris, hina-kohya launch)"
    for sites in environment.sites:
        yield from _sites(sites)
    if not environment.sites:
        yield "hooks: whether they act was not looked at: no checkout is known; add --sd-scripts PATH"
    for package, names in environment.optimizers.items():
        yield f"optimizers of {package}: {', '.join(names)}"
    yield from _listed("known to break", environment.known)
    if environment.problems:
        yield from _listed("wrong here", environment.problems)
    elif (
        any(sites.of(Outcome.NOT_LOOKED_AT) or not sites.verdicts for sites in environment.sites)
        or not environment.sites
    ):
        yield "nothing wrong was found here, and not all was looked at (above)"
    else:
        yield "nothing is wrong here"


def _sites(sites: Sites) -> Iterator[str]:
    """Where the hooks act in one checkout, and where not."""
    where = f"{sites.checkout.trainer.name} {(sites.checkout.commit or 'no git')[:8]}, {sites.checkout.root}"
    if not sites.verdicts:
        yield f"hooks: not looked at in {where}: there is no {sites.checkout.trainer.scripts} in it"
    for outcome in Outcome:
        of = sites.of(outcome)
        if outcome is Outcome.ACTS and of:
            yield f"hooks: {outcome.value} in {len(of)} of {len(sites.verdicts)} adapter trainers of {where}"
        for why in dict.fromkeys(of.values()):
            scripts = ", ".join(script for script, each in of.items() if each == why)
            yield f"  {scripts}: {why}" if outcome is Outcome.ACTS else f"hooks: {outcome.value}: {scripts}: {why}"


def _target(status: Status) -> Iterator[str]:
    version = (status.target.version or "")[:12] or "unknown version" if status.target else ""
    yield f"{status.name} {version}".rstrip() + f": {status.state.value}"
    if status.file and status.file.is_file():
        yield f"  {status.file}  sha256 {hashlib.sha256(status.file.read_bytes()).hexdigest()[:12]}"


def _listed(title: str, lines: tuple[str, ...]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  - {line}" for line in lines)
