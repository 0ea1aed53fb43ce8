"""`hina-kohya doctor`: versions, hashes, what is active, and what is known to break in this environment."""

import argparse
import hashlib
import sys
from collections.abc import Iterator

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
        found = look(parser.parse_args(argv).checkout)
    except UserError as error:
        print(f"hina-kohya doctor: error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(_lines(found)))
    return int(bool(found.problems))


def _lines(found: Environment) -> Iterator[str]:
    yield f"Python {found.python}   {sys.prefix}"
    width = max(len(package.name) for package in found.packages)
    for package in found.packages:
        asked = f"the trainer asks for {package.pinned}" if package.pinned and not package.fits else ""
        yield f"  {package.name:{width}}  {package.version or 'missing':14}  {asked}".rstrip()
    for told in found.targets:
        yield from _target(told)
    patched = [told.name for told in found.targets if told.state is State.PATCHED]
    if patched:
        yield f"hooks: installed by the patch of {' and '.join(patched)}"
    else:
        yield "hooks: installed where a command asks for them (--network_module hina_kohya.lycoris, hina-kohya launch)"
    for sites in found.sites:
        yield from _sites(sites)
    if not found.sites:
        yield "hooks: whether they act was not looked at: no checkout is known; add --sd-scripts PATH"
    for package, names in found.optimizers.items():
        yield f"optimizers of {package}: {', '.join(names)}"
    yield from _listed("known to break", found.known)
    if found.problems:
        yield from _listed("wrong here", found.problems)
    elif any(sites.of(Outcome.NOT_LOOKED_AT) or not sites.verdicts for sites in found.sites) or not found.sites:
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


def _target(told: Status) -> Iterator[str]:
    version = (told.target.version or "")[:12] or "unknown version" if told.target else ""
    yield f"{told.name} {version}".rstrip() + f": {told.state.value}"
    if told.file and told.file.is_file():
        yield f"  {told.file}  sha256 {hashlib.sha256(told.file.read_bytes()).hexdigest()[:12]}"


def _listed(title: str, lines: tuple[str, ...]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  - {line}" for line in lines)
