"""README and docs lead somewhere: every relative link is a file, every anchor a heading, and README stays short."""

import re

import pytest

from tests.support import pages


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_every_link_and_anchor_resolves(page):
    text = pages.read(page)
    broken = []
    for target in pages.links(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or pages.ROOT not in (file, *file.parents):
            broken.append(target)
        elif anchor and anchor not in pages.anchors(pages.read(file)):
            broken.append(f"{target}, which has {', '.join(sorted(pages.anchors(pages.read(file))))}")
    assert not broken


def test_links_are_found():
    text = "[a](b.md#c) ![d](e.png) [`f[0]`](g.md) `[no](link.md)`\n```md\n[no](link.md)\n```\n[`x`](http://h)"
    assert pages.links(text) == ["b.md#c", "e.png", "g.md", "http://h"]


def test_anchors_are_githubs():
    text = "# What helped, and what did not\n## `hina-kohya check`: before\n## A\n## A\n```\n# none\n```\n## 學習率\n"
    assert pages.anchors(text) == {
        "what-helped-and-what-did-not", "hina-kohya-check-before", "a", "a-1", "學習率",
    }  # fmt: skip


def test_readme_fits_two_screens():
    assert len(pages.read(pages.README).splitlines()) <= 100


def test_readme_leads_to_every_page_that_a_user_looks_for():
    """Issue 23: which optimizer, which rate, LoKr, resume, Windows, Python, removal: one click each."""
    targets = {target.partition("#")[0] for target in pages.links(pages.read(pages.README))}
    wanted = (
        "start", "learning_rates", "lokr", "weight_decay", "memory", "troubleshooting", "resume", "python",
        "techniques", "measured", "removing", "elsewhere", "index",
    )  # fmt: skip
    assert {f"docs/{name}.md" for name in wanted} <= targets
    assert "Windows" in pages.read(pages.README)


def test_readme_keeps_the_two_commands_of_a_source_checkout():
    """The first is what the demo's figures are made with, the second what CI runs."""
    commands = "".join(block.text for block in pages.blocks(pages.read(pages.README), "sh"))
    for command in ("bash scripts/demo.sh", "bash scripts/test.sh"):
        assert re.search(rf"^{command}\b", commands, re.MULTILINE)
        assert (pages.ROOT / command.split()[1]).is_file()


def test_the_index_has_every_page():
    targets = {target.partition("#")[0] for target in pages.links(pages.read(pages.DOCS / "index.md"))}
    written = {path.name for path in pages.DOCS.glob("*.md")} - {"index.md"}
    assert written <= targets
