"""One page about one run or two: it needs no network, runs no script, and shows every name as text."""

import datetime
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

import hina_kohya
from hina_kohya.files import atomic
from hina_kohya.loras import likeness
from hina_kohya.loras.errors import AdapterError
from hina_kohya.watch import blocks, curves
from hina_kohya.watch.errors import ReportError
from hina_kohya.watch.facts import facts
from hina_kohya.watch.figures import SERIES
from hina_kohya.watch.findings import findings
from hina_kohya.watch.folder import MOST_FILES
from hina_kohya.watch.run import Run, Tick

GENERATOR = "hina-kohya report"  # in the page's head: such a file may be written anew
_HEAD = 4096  # bytes of a page in which it is looked for


def refuse(target: Path, inputs: Sequence[Path]) -> None:
    """Raises ReportError where writing the target would lose something else than an older report."""
    if target.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"-o {target} must end with .html")
    if target.is_dir():
        raise ReportError(f"-o {target} is a folder; name a file in it")
    if not target.exists():
        return
    for path in inputs:
        if path.exists() and os.path.samefile(path, target):
            raise ReportError(f"{target} is a file that is read, and would be lost; give -o another name")
    with target.open("rb") as file:
        if GENERATOR.encode() not in file.read(_HEAD):
            raise ReportError(f"{target} is there and is no report of ours; give -o another name, or remove it")


def write(target: Path, runs: Sequence[Run], tick: Tick = lambda what, total: None) -> None:
    """One run, or two side by side."""
    text = render(runs, tick)
    with atomic(target) as unfinished:
        unfinished.write_text(text, encoding="utf-8", errors="replace")  # metadata may hold half a character


def render(runs: Sequence[Run], tick: Tick = lambda what, total: None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hina_kohya.watch", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": size, "date": date, "code": code}
    return environment.get_template("report.html.jinja").render(_content(runs, tick))


def _content(runs: Sequence[Run], tick: Tick) -> dict[str, Any]:
    labels = _labels(runs)
    adapters = [(run.adapter, label) for run, label in zip(runs, labels, strict=True) if run.adapter]
    return {
        "generator": GENERATOR,
        "version": hina_kohya.__version__,
        "written": date(datetime.datetime.now().timestamp()),
        "palette": list(enumerate(SERIES)),
        "runs": [
            {
                "run": run,
                "label": label,
                "findings": findings(run),
                "others": curves.others(run),
                "blocks": blocks.rows(run.adapter) if run.adapter else [],
                "files": run.files[:MOST_FILES],
                "steps": {each.path.name: each.step for each in run.saved},
            }
            for run, label in zip(runs, labels, strict=True)
        ],
        "labels": labels,
        "facts": _side_by_side([facts(run) for run in runs]),
        "curves": [each for each in (curves.loss(runs), curves.rates(runs)) if each],
        "blocks": blocks.figures([adapter for adapter, _ in adapters], [label for _, label in adapters]),
        **_alike(runs, tick),
    }


def _labels(runs: Sequence[Run]) -> list[str]:
    if len(runs) == 1:
        return [runs[0].name]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # the same name in two folders
        names = [f"{run.name} in {run.folder}" for run in runs]
    return [f"{letter}: {name}" for letter, name in zip("AB", names, strict=False)]


def _side_by_side(tables: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Rows of all tables; differs: not the same in both."""
    names = sorted({name for table in tables for name in table}, key=lambda name: _place(tables, name))
    rows = [{"what": name, "how": [table.get(name, "") for table in tables]} for name in names]
    return [row | {"differs": len(set(row["how"])) > 1} for row in rows]


def _place(tables: list[dict[str, str]], name: str) -> int:
    return max(list(table).index(name) for table in tables if name in table)


def _alike(runs: Sequence[Run], tick: Tick) -> dict[str, Any]:
    """How alike the adapters of two runs are, block by block, or why nobody can say."""
    if len(runs) < 2 or not all(run.adapter for run in runs):
        return {"alike": [], "unlike": ""}
    first, second = (run.adapter.path for run in runs if run.adapter)
    try:
        by_block, _ = likeness.compare(first, second, tick)
    except AdapterError as error:
        return {"alike": [], "unlike": str(error)}
    return {"alike": [{"block": block, "cosine": f"{each.cosine:+.3f}", "overlap": f"{each.overlap:.1%}"}
                      for block, each in by_block.items()], "unlike": ""}  # fmt: skip


def code(text: str) -> Markup:
    """What stands between backticks, as code; everything is escaped first."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def size(count: int) -> str:
    """Bytes for people; decimal, as the docs have it."""
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if count >= 10**power:
            return f"{count / 10**power:.2f} {unit}"
    return f"{count} B"


def date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
