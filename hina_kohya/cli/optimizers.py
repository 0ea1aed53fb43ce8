"""`hina-kohya optimizers [NAME]`: which optimizers there are by short name, and what one of them accepts."""

import argparse
import dataclasses as dc
import inspect
import re
import sys
from typing import Any

import hina_kohya
from hina_kohya.cli.parser import Parser
from hina_kohya.core.hyper import first_sentence
from hina_kohya.text import did_you_mean
from hina_kohya.trainers import optimizer_names
from hina_kohya.trainers.errors import UserError

FAMILIES = tuple(name for name in hina_kohya.OPTIMIZERS if name in hina_kohya.__all__)
EXAMPLE = """examples:
  hina-kohya optimizers               one line an optimizer
  hina-kohya optimizers --all         its other names, too
  hina-kohya optimizers HinaAdamW     its arguments, bounds, techniques and their papers"""


def main(argv: list[str]) -> int:
    parser = Parser(
        prog="hina-kohya optimizers",
        description=f"Optimizers of the entry-point group {optimizer_names.GROUP!r}: this package's and anybody's.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="show one optimizer; letter case does not matter")
    parser.add_argument("--all", action="store_true", help="other names of the same optimizers, too")
    args = parser.parse_args(argv)
    name = args.name
    try:
        print("\n".join(listing(args.all) if name is None else description(name)))
    except UserError as error:
        print(f"hina-kohya optimizers: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def listing(everything: bool) -> list[str]:
    """One line a name: this package's families, then what others registered; aliases of both where asked for."""
    entries = [(entry, entry.load()) for entry in optimizer_names.entries()]
    first = {name: number for number, name in enumerate(FAMILIES)}
    entries.sort(key=lambda each: (first.get(each[0].name, len(first)), each[0].name))
    lines = []
    for entry, cls in entries:
        is_alias = cls.__name__ != entry.name
        if is_alias and not everything:
            continue
        what = f"another name of {cls.__name__}" if is_alias else first_sentence(cls)
        lines.append(f"{entry.name:32} {optimizer_names.package(entry):14} {what}")
    aliases = sum(cls.__name__ != entry.name for entry, cls in entries)
    hint = [f"hina-kohya optimizers --all    shows {aliases} other names, too"] if aliases and not everything else []
    return [*lines, "", "hina-kohya optimizers NAME     shows what one accepts", *hint]


def description(name: str) -> list[str]:
    entry = optimizer_names.find(name)
    if entry is None:
        raise UserError(
            f"there is no optimizer {name!r}; {did_you_mean(name, {each.name for each in optimizer_names.entries()})}"
        )
    cls = entry.load()
    lines = [f"{cls.__name__}: {first_sentence(cls)}", f"--optimizer_type {optimizer_names.path(entry)}", ""]
    from hina_kohya.optim import arguments  # noqa: PLC0415 (torch: only where it is needed)
    from hina_kohya.optim.family import Family  # noqa: PLC0415

    if not (isinstance(cls, type) and issubclass(cls, Family)):
        return [*lines, f"arguments: {inspect.signature(cls)}"]
    rows = [(name, str(row.start), row.bounds(), row.doc()) for name, row in arguments.of(cls).items()]
    table = _aligned([("argument", "default", "bounds", "meaning"), *rows])
    return [*lines, *table, "", "techniques (any option as technique.option):", *_techniques()]


def _techniques() -> list[str]:
    from hina_kohya.core.registry import techniques  # noqa: PLC0415 (torch: only where it is needed)

    lines = []
    for technique in techniques().values():
        lines += [f"  {technique.name}: {first_sentence(technique)}", f"      {source(technique)}"]
        lines += [f"      {technique.name}.{name:18} {default:>8}  {bounds:11} {doc}"
                  for name, default, bounds, doc in map(_row, dc.fields(technique))]  # fmt: skip
    return lines


def source(technique: type) -> str:
    """The whole paragraph after `Source:`, without the documents that are not in the package."""
    doc = inspect.cleandoc(technique.__doc__ or "")
    match = re.search(r"^Source:\s*(.*?)(?=^\w+:|^\s*$|\Z)", doc, re.MULTILINE | re.DOTALL)
    text = " ".join(match[1].split()) if match else ""
    return re.sub(r"\s*\([A-Z]+\.md[^)]*\)", "", text)


def _row(field: dc.Field[Any]) -> tuple[str, str, str, str]:
    interval = field.metadata["interval"]
    return field.name, str(field.default), interval.text if interval else "", field.metadata["doc"]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
