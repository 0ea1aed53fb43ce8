#!/usr/bin/env python3
"""Write what follows from the table of arguments: the stub that editors read, and docs/arguments.md.

Run it after a change of the table or of a technique's options; a test compares.
"""

import inspect
from pathlib import Path
from typing import Any

import hina_kohya
from hina_kohya.cli.optimizers import source
from hina_kohya.core.hyper import first_sentence
from hina_kohya.core.registry import techniques
from hina_kohya.optim import arguments
from hina_kohya.optim.kinds import Argument

ROOT = Path(__file__).parents[1]
HEAD = '''"""Signatures for editors, by scripts/make_arguments.py from the table in hina_kohya/optim/arguments.py."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

'''
PAGE = """# Arguments

Written by `scripts/make_arguments.py` from the table in `hina_kohya/optim/arguments.py`;
[optimizers.md](optimizers.md) says what they are for. `AutomagicCameAMP8bit` and `COptim8bit` have those of the
class without `8bit`, except `state`. A name before a meaning is that of a technique, which the argument switches on or
sets; an option without an argument is set as `technique.option`: `hina-kohya optimizers NAME` lists them.

| argument | default | bounds | classes | meaning |
| --- | --- | --- | --- | --- |
"""
TECHNIQUES = """
## Techniques

| technique | what it does | source |
| --- | --- | --- |
"""


def classes() -> dict[str, type]:
    names = [name for name in hina_kohya.__all__ if name != "__version__"]
    return {name: getattr(hina_kohya, name) for name in names}


def stub() -> str:
    """`hina_kohya/__init__.pyi`: each class with its real signature, and the other names of the classes."""
    modules = {name: cls.__module__.rpartition(".")[2] for name, cls in classes().items()}
    lines = [f"from hina_kohya.optim import {', '.join(sorted({*modules.values()}))}", ""]
    lines += ["__version__: str", "OPTIMIZERS: tuple[str, ...]"]
    lines += ["__all__ = [", *(f'    "{name}",' for name in hina_kohya.__all__), "]"]
    for name, cls in classes().items():
        lines += ["", f"class {name}({modules[name]}.{name}):", "    def __init__(", "        self,"]
        parameters = list(inspect.signature(cls).parameters.values())
        for before, parameter in zip([None, *parameters], parameters, strict=False):
            if before and before.kind != parameter.kind == inspect.Parameter.KEYWORD_ONLY:
                lines.append("        *,")
            lines.append(f"        {_text(parameter)},")
        lines += ["    ) -> None: ..."]
    lines.append("")
    names = {cls: name for name, cls in classes().items()}
    others = [name for name in hina_kohya.OPTIMIZERS if name not in classes()]
    lines += [f"{name} = {names[getattr(hina_kohya, name)]}" for name in others]
    return HEAD + "\n".join(lines) + "\n"


def _text(parameter: inspect.Parameter) -> str:
    text = str(parameter).replace("collections.abc.", "").replace("torch.", "").replace("'", '"')
    return text.replace("= inf", '= float("inf")')


def page() -> str:
    """`docs/arguments.md`."""
    rows = [_row(row) for row in arguments.ROWS]
    lines = [
        (each.name, first_sentence(each).replace("|", r"\|"), source(each).replace("|", r"\|"))
        for each in techniques().values()
    ]
    return PAGE + "".join(map(_line, rows)) + TECHNIQUES + "".join(map(_line, lines))


def _row(row: Argument) -> tuple[str, ...]:
    """Of the classes that have it, the commonest default first."""
    shown = {name: cls for name, cls in classes().items() if not name.endswith("8bit")}
    owners = {name: each for name, cls in shown.items() for each in [_own(cls, row)] if each is not None}
    of_default: dict[str, list[str]] = {}
    for name, each in owners.items():
        of_default.setdefault(repr(each.start), []).append(name)
    commonest, *others = sorted(of_default, key=lambda default: -len(of_default[default]))
    default = "; ".join([commonest, *(f"{each} in {', '.join(of_default[each])}" for each in others)])
    where = "all" if len(owners) == len(shown) else ", ".join(owners)
    bounds = f"`{row.bounds()}`" if row.bounds() else ""
    return f"`{row.name}`", default, bounds, where, row.doc()


def _own(cls: type, row: Argument) -> Argument | None:
    """The class's argument, where it is made of this row."""
    each = arguments.of(cls).get(row.name)
    return each if each is not None and (each.target, each.classes) == (row.target, row.classes) else None


def _line(cells: tuple[Any, ...]) -> str:
    return f"| {' | '.join(cells)} |\n"


FILES = {ROOT / "hina_kohya" / "__init__.pyi": stub, ROOT / "docs" / "arguments.md": page}

if __name__ == "__main__":
    for path, text in FILES.items():
        path.write_text(text(), encoding="utf-8", newline="\n")
        print(path)
