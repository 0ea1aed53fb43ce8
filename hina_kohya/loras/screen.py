"""One screen about one adapter file, or about two."""

from collections import Counter
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hina_kohya.loras.likeness import Likeness
from hina_kohya.loras.summary import FileSummary, ModuleSummary, mean_spectrum, training

_BARS = " ▁▂▃▄▅▆▇█"
_POINTS = 16


def one_file(summary: FileSummary) -> Any:
    """A rich renderable."""
    modules = summary.modules
    algorithms = Counter(module.algorithm for module in modules)
    lines = [
        f"{summary.path}: {summary.bytes / 1e6:.2f} MB, {', '.join(summary.dtypes)}, "
        f"{summary.style or 'nobody knows whose'} names",
        f"  {len(modules)} modules: " + ", ".join(f"{name} {count}" for name, count in algorithms.most_common()),
        f"  rank {_range([module.rank for module in modules])} as trained; "
        f"{_range([module.rank_for(0.98) for module in modules])} for 98 % of each module's energy",
    ]
    rows = training(summary.metadata)
    lines += [f"  {what}: {how[:160]}" for what, how in rows] or ["  the file says nothing about its training"]
    lines += [f"  {note}" for note in summary.notes]
    total = sum(module.energy for module in modules)
    table = _table("block", "modules", "rank", "norm", "share of energy", "rank for 98 %", f"first {_POINTS} values")
    for block, inside in summary.blocks().items():
        table.add_row(*_row(block, inside, total))
    return Group(Text("\n".join(lines)), table)


def two_files(first: FileSummary, second: FileSummary, likeness: dict[str, Likeness], lone: tuple[int, int]) -> Any:
    """How alike per block."""
    shared = sum(each.modules for each in likeness.values())
    text = (
        f"A  {first.path}: {first.bytes / 1e6:.2f} MB\nB  {second.path}: {second.bytes / 1e6:.2f} MB\n"
        f"  {shared} modules in both, {lone[0]} in A alone, {lone[1]} in B alone"
    )
    text = "\n".join([text, *(f"  {note}" for note in dict.fromkeys((*first.notes, *second.notes)))])
    table = _table("block", "modules", "norm of A", "norm of B", "cosine", "of A where B is")
    whole = Likeness()
    for block, each in likeness.items():
        whole.add(each)
        table.add_row(*_alike(block, each))
    table.add_section()
    table.add_row(*_alike("all", whole))
    return Group(Text(text), table)


def _row(block: str, modules: list[ModuleSummary], total: float) -> list[str]:
    energy = sum(module.energy for module in modules)
    bars = "".join(_BARS[round(float(value) * (len(_BARS) - 1))] for value in mean_spectrum(modules, _POINTS))
    return [
        block,
        str(len(modules)),
        _range([module.rank for module in modules]),
        f"{energy**0.5:.3g}",
        f"{energy / total:.1%}" if total else "-",
        _range([module.rank_for(0.98) for module in modules]),
        bars,
    ]


def _alike(block: str, each: Likeness) -> list[str]:
    norms = (f"{each.first**0.5:.3g}", f"{each.second**0.5:.3g}")
    return [block, str(each.modules), *norms, f"{each.cosine:+.3f}", f"{each.overlap:.1%}"]


def _range(values: list[int]) -> str:
    if not values:
        return "-"
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        left = number == 0 or heading.startswith("first")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    return table
