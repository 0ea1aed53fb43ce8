"""`hina-kohya optimizers`: names, arguments and papers, read off the declarations."""

import re
from importlib.metadata import EntryPoint

import pytest

from hina_kohya import HinaAdamW
from hina_kohya.cli import main
from hina_kohya.cli.optimizers import FAMILIES
from hina_kohya.core.hyper import first_sentence
from hina_kohya.core.registry import techniques
from hina_kohya.optim import arguments

NAMES = ("HinaAdamW", "HinaAdamWOptimizer", "HinaAdamWOptimizer8bit", "CustomAdamW")


@pytest.fixture
def entries(monkeypatch):
    """The group as an installed package would show it, plus what a test adds."""
    group = "sd_scripts.optimizers"
    found = [EntryPoint(name, "hina_kohya:HinaAdamW", group) for name in NAMES]
    monkeypatch.setattr("hina_kohya.trainers.optimizer_names.registered", lambda folders: found)
    return lambda name, value: found.append(EntryPoint(name, value, group))


def test_lists_every_name_on_one_line(entries, capsys):
    assert main(["optimizers", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert ("another name of HinaAdamW" in line) == (name != "HinaAdamW")


def test_shows_all_arguments_bounds_and_papers(entries, capsys):
    assert main(["optimizers", "hinaadamw"]) == 0
    text = capsys.readouterr().out
    assert "--optimizer_type hina_kohya.HinaAdamW" in text
    for row in arguments.of(HinaAdamW).values():
        assert row.name in text
        assert row.doc() in text
    assert "[0, inf)" in text
    for technique in techniques().values():
        assert f"  {technique.name}: " in text
    assert "arXiv:2411.16085" in text
    assert "cautious.floor" in text


def test_unknown_names_and_clashes_are_one_clear_error(entries, capsys):
    assert main(["optimizers", "HinaAdmW"]) == 2
    assert "there is no optimizer 'HinaAdmW'; did you mean HinaAdamW" in capsys.readouterr().err
    entries("hinaadamw", "torch.optim:AdamW")
    assert main(["optimizers", "HinaAdamW"]) == 2
    error = capsys.readouterr().err
    assert (
        "HinaAdamW is claimed by hina-kohya (hina_kohya.HinaAdamW) and an unknown package (torch.optim.AdamW)" in error
    )


def test_an_optimizer_of_another_package_shows_its_signature(entries, capsys):
    entries("TheirAdamW", "torch.optim:AdamW")
    assert main(["optimizers", "TheirAdamW"]) == 0
    assert "arguments: (params" in capsys.readouterr().out


def test_families_come_first_and_aliases_are_asked_for(capsys):
    assert main(["optimizers"]) == 0
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert first[: len(FAMILIES)] == [*FAMILIES]
    assert FAMILIES[0] == "HinaAdamW"
    assert "CustomAdamW" not in first


def test_no_sentence_is_cut_off_and_no_file_is_named_that_is_not_there(capsys):
    for words in ([], ["HinaAdamW"], ["AutomagicCameAMP"], ["COptim"]):
        assert main(["optimizers", *words]) == 0
        text = capsys.readouterr().out
        assert not re.findall(r"\b[A-Z]+\.md\b", text)
    for technique in techniques().values():
        assert first_sentence(technique).endswith((".", ")")), technique.name
