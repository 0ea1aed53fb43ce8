"""The site of mkdocs.yml: every page is in its navigation, it builds without a warning, and fetches nothing."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import toml
import yaml

from tests.support import pages

needs_mkdocs = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "latex2mathml")),
    reason="needs the docs extra: pip install -e .[docs]",
)


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, which makes a function of Python's in one place."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def leaves(nav):
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else leaves(value)


def test_every_page_is_in_the_navigation_once():
    config = yaml.load((pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    listed = list(leaves(config["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {page.relative_to(pages.DOCS).as_posix() for page in pages.DOCS.rglob("*.md")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    build = subprocess.run(command, cwd=pages.ROOT, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    return folder


class References(HTMLParser):
    """What a browser loads by itself: scripts, styles, fonts, pictures."""

    def __init__(self):
        super().__init__()
        self.loaded = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.loaded.append(values.get("src"))
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loaded.append(values.get("href"))


@pytest.mark.slow
@needs_mkdocs
def test_no_reader_fetches_anything_from_another_site(site):
    loaded = []
    for page in site.rglob("*.html"):
        parser = References()
        parser.feed(page.read_text(encoding="utf-8"))
        loaded += [reference for reference in parser.loaded if reference]
    assert loaded
    assert not [reference for reference in loaded if re.match(r"(https?:)?//", reference)]


@pytest.mark.slow
@needs_mkdocs
def test_files_outside_of_docs_come_along(site):
    page = (site / "lokr.html").read_text(encoding="utf-8")
    assert 'href="repository/configs/training/sdxl_lokr.toml"' in page
    assert (site / "repository" / "configs" / "training" / "sdxl_lokr.toml").is_file()
    assert (site / "repository" / "benchmarks" / "results" / "pretrained_full_rates.png").is_file()
    back = (site / "repository" / "configs" / "index.html").read_text(encoding="utf-8")
    assert 'href="../../learning_rates.html"' in back


@pytest.mark.slow
@needs_mkdocs
def test_formulas_are_drawn_without_a_script(site):
    page = (site / "adlrns.html").read_text(encoding="utf-8")
    assert page.count("<math") > 10
    assert "arithmatex" not in page


def test_ci_builds_it_with_the_docs_extra():
    workflow = (pages.ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    extra = toml.load(pages.ROOT / "pyproject.toml")["project"]["optional-dependencies"]["docs"]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in extra]
    pinned = (pages.ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8")
    assert names
    for name in names:
        assert re.search(rf"\b{name}\b", workflow), name
        assert re.search(rf"^{name}==", pinned, re.MULTILINE), name
    assert "mkdocs build --strict" in workflow
