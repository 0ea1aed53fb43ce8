"""docs/words.md: one word per thing, and the other words on no page."""

import re

import pytest

from tests.support import pages

WORDS = pages.DOCS / "words.md"
ENGLISH = [page for page in pages.PAGES if page != WORDS and page.parent.name not in ("zh-TW", "zh-CN", "ja")]
ROW = re.compile(r"^\| (?!---|word )([^|]+) \| ([^|]+) \| ([^|]*)\|$", re.MULTILINE)


def others():
    """What is not to be said -> what is."""
    return {
        other.strip(): word.strip()
        for word, _, row in ROW.findall(pages.read(WORDS))
        for other in row.split(",")
        if other.strip()
    }


def said(text, word):
    """Whether prose has a word or its plural, on one line or over two."""
    spaced = r"\s+".join(map(re.escape, word.split()))
    return re.search(rf"\b{spaced}s?\b", text, re.IGNORECASE)


@pytest.mark.parametrize("page", ENGLISH, ids=pages.name)
def test_a_page_says_one_word_for_one_thing(page):
    text = pages.prose(pages.read(page))
    assert {other: word for other, word in others().items() if said(text, other)} == {}


def test_the_words_are_found():
    table = others()
    assert table["validation loss"] == table["eval loss"] == "held-out loss"
    assert len(table) > 12
    assert said("its Validation\nlosses and", "validation loss") is None
    assert said("a Validation\nloss falls", "validation loss")
    assert said("two config files", "config file")
    assert not said("config-filed", "config file")


def test_no_word_is_in_two_rows():
    words = [word for row in ROW.findall(pages.read(WORDS)) for word in row[0].split(", ")]
    assert len(words) == len({word.strip() for word in words})
