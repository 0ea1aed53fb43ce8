"""`hina-kohya optimizers [NAME]`: which optimizers there are by short name, and what one of them accepts."""

import argparse
import dataclasses as dc
import inspect
import sys
from typing import Any

from hina_kohya.core.hyper import did_you_mean
from hina_kohya.trainers import optimizer_names
from hina_kohya.trainers.errors import UserError

EXAMPLE = """examples:
  hina-kohya optimizers               one line a name
  hina-kohya optimizers HinaAdamW     its arguments, bounds, techniques and their papers"""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="hina-kohya optimizers",
        description=f"Optimizers of the entry-point group {optimizer_names.GROUP!r}: this package's and anybody's.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="show one optimizer; letter case does not matter")
    name = parser.parse_args(argv).name
    try:
        print("\n".join(listing() if name is None else description(name)))
    except UserError as error:
        print(f"hina-kohya optimizers: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def listing() -> list[str]:
    """One line a name: what it is, or whose other name it is."""
    lines = []
    for entry in optimizer_names.entries():
        cls = entry.load()
        what = f"another name of {cls.__name__}" if cls.__name__ != entry.name else _first_line(cls)
        lines.append(f"{entry.name:26} {optimizer_names.package(entry):14} {what}")
    return [*lines, "", "hina-kohya optimizers NAME   shows what one accepts"]


def description(name: str) -> list[str]:
    entry = optimizer_names.find(name)
    if entry is None:
        raise UserError(
            f"there is no optimizer {name!r}; {did_you_mean(name, {each.name for each in optimizer_names.entries()})}"
        )
    cls = entry.load()
    lines = [f"{cls.__name__}: {_first_line(cls)}", f"--optimizer_type {optimizer_names.path(entry)}", ""]
    settings = getattr(cls, "Settings", None)
    if settings is None:
        return [*lines, f"arguments: {inspect.signature(cls)}"]
    rows = [("argument", "default", "bounds", "meaning"), *(_row(field) for field in dc.fields(settings))]
    return [*lines, *_aligned(rows), "", "techniques (any option as technique.option):", *_techniques()]


def _techniques() -> list[str]:
    from hina_kohya.core.registry import techniques  # noqa: PLC0415 (torch: only where it is needed)

    lines = []
    for technique in techniques().values():
        source = next(
            line for line in inspect.cleandoc(technique.__doc__ or "").splitlines() if line.startswith("Source:")
        )
        lines += [f"  {technique.name}: {_first_line(technique)}", f"      {source.removeprefix('Source: ')}"]
        lines += [f"      {technique.name}.{name:18} {default:>8}  {bounds:11} {doc}"
                  for name, default, bounds, doc in map(_row, dc.fields(technique))]  # fmt: skip
    return lines


def _row(field: dc.Field[Any]) -> tuple[str, str, str, str]:
    interval = field.metadata["interval"]
    return field.name, str(field.default), interval.text if interval else "", field.metadata["doc"]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


def _first_line(thing: type) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0]
