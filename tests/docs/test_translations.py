"""Pages in other languages are in step with the English ones: the same headings, by level, the same code and links."""

import re

import pytest

from tests.support import pages

LANGUAGES = ("zh-TW", "zh-CN", "ja")
ORIGINALS = {
    "README.md": pages.README,
    **{name: pages.DOCS / name for name in ("start.md", "learning_rates.md", "lokr.md")},
}
PAIRS = [(language, name) for language in LANGUAGES for name in ORIGINALS]


def translation(language, name):
    return pages.DOCS / language / name


def code(text):
    """The blocks without their comments, which are translated."""
    return [(language, re.sub(r"[ \t]*#.*$", "", block, flags=re.MULTILINE)) for language, block in pages.blocks(text)]


def targets(page):
    """Files and sites that a page links to, as their English originals; without those that are the same page."""
    originals = {translation(language, name): ORIGINALS[name] for language, name in PAIRS}
    found = set()
    for link in pages.links(pages.read(page)):
        file = (page.parent / (link.partition("#")[0] or page.name)).resolve()
        found.add(link if "://" in link else originals.get(file, file))
    return found - {originals.get(page, page)}


@pytest.mark.parametrize(("language", "name"), PAIRS)
def test_headings_are_those_of_the_original(language, name):
    own, original = (pages.headings(pages.read(p)) for p in (translation(language, name), ORIGINALS[name]))
    assert [level for level, _ in own] == [level for level, _ in original]


@pytest.mark.parametrize(("language", "name"), PAIRS)
def test_code_is_that_of_the_original(language, name):
    original = code(pages.read(ORIGINALS[name]))
    assert original
    assert code(pages.read(translation(language, name))) == original


@pytest.mark.parametrize(("language", "name"), PAIRS)
def test_links_are_those_of_the_original(language, name):
    """A translation may be a row behind, but leads nowhere that the original does not."""
    own, original = targets(translation(language, name)), targets(ORIGINALS[name])
    assert own <= original
    assert len(own) > 0.8 * len(original)


@pytest.mark.parametrize(("language", "name"), PAIRS)
def test_it_is_in_its_language(language, name):
    """Han in all of them; kana in Japanese only; no forms of the other Chinese script."""
    text = pages.prose(pages.read(translation(language, name)))
    text = "\n".join(line for line in text.splitlines() if "·" not in line)  # the links to the other languages
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 100
    assert bool(re.search(r"[\u3040-\u30ff]", text)) == (language == "ja")
    others = {"zh-TW": "训练设权阵", "zh-CN": "訓練設權陣", "ja": "训练设权阵"}[language]
    assert not set(others) & set(text)


def test_comments_do_not_count_as_code():
    assert code("```sh\na b  # c\n```\n") == code("```sh\na b    # 其他\n```\n") != code("```sh\na c\n```\n")
