"""What tests of documents read: pages, their headings as GitHub and mkdocs anchor them, links, code blocks."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
# Beside the pages themselves, what they lead to and what leads to them.
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", ROOT / "configs" / "README.md", *DOCS.rglob("*.md")])
_FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")


class Block(NamedTuple):
    language: str
    text: str


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, language: str | None = None) -> list[Block]:
    """The fenced code blocks, in order; those of one language if it is named."""
    found = [Block(match[2].strip(), match[3]) for match in _FENCE.finditer(text)]
    return [block for block in found if language in (None, block.language)]


def prose(text: str) -> str:
    """Without code: what looks like a link or a heading in there is none."""
    return re.sub(r"`[^`\n]*`", lambda match: "x" * len(match[0]), _FENCE.sub("", text))


def headings(text: str) -> list[tuple[int, str]]:
    """(level, text) of every heading."""
    return [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#{1,6}) (.+)$", _FENCE.sub("", text), re.MULTILINE)]


def anchors(text: str) -> set[str]:
    """As GitHub makes them: lower case, without punctuation, blanks as dashes; a second one alike gets -1."""
    result: dict[str, int] = {}
    done = set()
    for _, heading in headings(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        count = result.get(slug, 0)
        result[slug] = count + 1
        done.add(f"{slug}-{count}" if count else slug)
    return done


def links(text: str) -> list[str]:
    """Targets of all links and pictures."""
    # Code within a link's text may hold brackets; its target has none.
    return _LINK.findall(prose(text))
