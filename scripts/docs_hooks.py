"""Hooks of mkdocs: what the pages link to outside of docs/ comes along, and formulas become MathML.

The pages are written for GitHub, where `../configs/README.md` is a link like any other. A site has docs/ alone, so such
files are put under `repository/`, and the links to them are turned. A folder has no page: its link becomes text.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = "repository"
# Code is left alone: its alternatives come without a name. A link's text may hold code and brackets.
_LINK = re.compile(
    r"^(?P<fence>`{3,}).*?^(?P=fence)[ ]*$|(?P<text>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<target>[^()\s]+)\)|`[^`\n]*`",
    re.MULTILINE | re.DOTALL,
)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">"}


def _source(uri: str) -> Path:
    """Where a page of the site comes from."""
    inside = uri.removeprefix(f"{ELSEWHERE}/")
    return (ROOT if inside != uri else DOCS) / inside


def _meant(page: Path, target: str) -> Path | None:
    """The file or folder that a link means; None for other sites and for places in the same page."""
    path = target.partition("#")[0]
    return (page.parent / path).resolve() if path and not re.match(r"[a-z]+:", path) else None


def _uri(file: Path) -> str:
    inside = DOCS in file.parents
    return file.relative_to(DOCS).as_posix() if inside else f"{ELSEWHERE}/{file.relative_to(ROOT).as_posix()}"


def _targets(page: Path) -> set[Path]:
    found = {_meant(page, m["target"]) for m in _LINK.finditer(page.read_text(encoding="utf-8")) if m["target"]}
    return {file for file in found if file is not None and file.is_file() and DOCS not in file.parents}


def on_files(files: Any, config: Any) -> Any:
    """Adds what pages outside of docs/ are linked to, and what those link to."""
    waiting, seen = sorted(DOCS.rglob("*.md")), set[Path]()
    while waiting:
        for file in sorted(_targets(waiting.pop()) - seen):
            seen.add(file)
            files.append(File.generated(config, _uri(file), abs_src_path=str(file)))
            waiting += [file] if file.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns the links that leave docs/."""
    source, depth = _source(page.file.src_uri), page.file.src_uri.count("/")

    def turned(match: re.Match[str]) -> str:
        file = _meant(source, match["target"]) if match["target"] else None
        if file is None:
            return match[0]
        if file.is_dir():
            return match["text"].lstrip("!")[1:-1]
        _, dash, anchor = match["target"].partition("#")
        return f"{match['text']}({'../' * depth}{quote(_uri(file))}{dash}{anchor})"

    return _LINK.sub(turned, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""

    def drawn(match: re.Match[str]) -> str:
        latex = re.sub("|".join(_ENTITIES), lambda entity: _ENTITIES[entity[0]], match[3])
        return convert(latex, display="inline" if match[2] == "(" else "block")

    return _FORMULA.sub(drawn, html)
