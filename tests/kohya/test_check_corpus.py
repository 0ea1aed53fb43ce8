"""Configurations in the manner of GUIs and guides, with what the real parser and the real trainer do with each."""

import json
import shlex
from pathlib import Path

import pytest
import toml

from hina_kohya.check import printing, report
from hina_kohya.check.finding import Level
from hina_kohya.check.reading.source import Form
from hina_kohya.check.run import How
from tests.support import places
from tests.support.mending import assert_mends, typed

CORPUS = Path(__file__).parent / "corpus"
CASES = json.loads((CORPUS / "cases.json").read_text(encoding="utf-8"))
OUTCOMES = json.loads((CORPUS / "outcomes.json").read_text(encoding="utf-8"))
GRAVE = (Level.ERROR, Level.MISSING)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(folder, name):
    put = places.make(folder)
    text = places.put((CORPUS / name).read_text(encoding="utf-8"), put)
    if "dataset" in CASES[name]:
        (folder / "dataset.toml").write_text(places.put(CASES[name]["dataset"], put))
    if name.endswith(".txt"):
        return report.check(shlex.split(text))
    (folder / name).write_text(text, encoding="utf-8")
    return report.check(name)


def test_the_corpus_is_whole():
    files = {path.name for path in CORPUS.iterdir() if path.suffix != ".json" or path.name.startswith("kohya_ss")}
    assert files == set(CASES) == set(OUTCOMES)
    assert len(CASES) >= 60
    commands = [name for name in CASES if not name.endswith((".toml", ".json"))]
    assert 3 * len(commands) >= len(CASES)
    for name, case in CASES.items():
        assert OUTCOMES[name]["trainer"].partition(":")[0] == case["expect"], name


@pytest.mark.parametrize("name", CASES)
def test_no_error_on_what_trains_and_a_finding_on_what_stops(folder, name):
    found = checked(folder, name)
    assert found.run is not None
    assert (found.run.trainer.script, found.run.trainer.certain) == (CASES[name]["script"], True)
    grave = [each for each in found.findings if each.level in GRAVE]
    if OUTCOMES[name]["trainer"] == "trains":
        assert [each for each in grave if each.level is Level.ERROR] == []
    else:
        assert grave


@pytest.mark.parametrize("name", CASES)
def test_every_line_removes_its_finding_and_adds_none(folder, name):
    found = checked(folder, name)
    for remedy in found.remedies:
        assert_mends(found, remedy, report.of_source(remedy.edit.applied(found.source), How()))


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith(".toml")])
def test_lines_typed_into_the_file_do_the_same(folder, name):
    """By the printed text alone, as a user would."""
    found = checked(folder, name)
    assert found.source.form is Form.TOML
    for remedy in found.remedies:
        before = {
            file: (folder / file).read_text(encoding="utf-8")
            for file in (name, "dataset.toml")
            if (folder / file).exists()
        }
        if any("   (in " in line for _, line in remedy.steps):
            continue  # of the dataset file
        text = typed(before[name], remedy.steps)
        toml.loads(text)
        (folder / name).write_text(text, encoding="utf-8")
        assert_mends(found, remedy, report.check(name))
        (folder / name).write_text(before[name], encoding="utf-8")


def test_one_line_for_two_faults_of_one_list(folder):
    found = checked(folder, "kohya_ss_two_faults_in_one_list.toml")
    lines = [line for line in printing.text(found) if "optimizer_args = " in line]
    assert lines == ['  write    optimizer_args = ["weight_decay=0.1", "amsgrad=True"]']


@pytest.mark.slow
def test_the_output_fits_on_a_screen(folder, monkeypatch):
    for number, name in enumerate(CASES):
        place = folder / str(number)
        place.mkdir()
        monkeypatch.chdir(place)
        assert len(printing.text(checked(place, name))) < 60
