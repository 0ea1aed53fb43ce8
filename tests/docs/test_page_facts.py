"""What the pages say is so: their Python runs, their TOML passes the check, names and figures are the package's."""

import json
import re
import shlex

import pytest
import toml

import hina_kohya
from hina_kohya.cli import COMMANDS, main
from tests.support import pages

CLASSES = ("HinaAdamW", "AdaptiveHinaAdamW", "AutomagicCameAMP", "AutomagicCameAMP8bit", "COptim", "COptim8bit")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["python.md", "weight_decay.md"])
def test_python_runs_as_printed(page, capsys):
    world = {}
    for block in pages.blocks(pages.read(pages.DOCS / page), "python"):
        exec(block.text, world)
    if page == "python.md":
        printed = re.search(r"^# (hina-kohya: .*), \.\.\.$", pages.read(pages.DOCS / page), re.MULTILINE)
        assert printed is not None
        assert capsys.readouterr().out.startswith(printed[1])


def checked(path, capsys, *words):
    assert main(["check", str(path), "--no-forecast", "--format", "json", *words]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    return [each for each in findings if each["rule"] != "hooks_not_looked_at"]  # there is no checkout to look into


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_toml_can_be_read_and_commands_exist(page):
    text = pages.read(page)
    for block in pages.blocks(text, "toml"):
        assert toml.loads(block.text)
    for block in pages.blocks(text, "sh"):
        assert set(re.findall(r"^hina-kohya +(\w+)", block.text, re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.slow
def test_readmes_toml_has_no_findings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = pages.blocks(pages.read(pages.README), "toml")
    rest = 'pretrained_model_name_or_path = "<model>"\ndataset_config = "<data>"\noutput_dir = "out"\nnetwork_dim = 8\n'
    rest += "learning_rate = 1e-4\nmax_train_steps = 2000\n"
    (tmp_path / "my.toml").write_text(rest + block.text, encoding="utf-8")
    assert checked("my.toml", capsys, "--script", "sdxl_train_network.py") == []


def test_the_first_run_has_no_findings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dataset, run = pages.blocks(pages.read(pages.DOCS / "start.md"), "toml")
    text = re.sub(r'"/path/to/[^"]*"|"dataset.toml"', '"<fill in>"', run.text)
    (tmp_path / "my.toml").write_text(text, encoding="utf-8")
    assert checked("my.toml", capsys, "--script", "sdxl_train_network.py") == []
    (tmp_path / "dataset.toml").write_text(dataset.text.replace("/path/to/images", "<fill in>"), encoding="utf-8")
    assert checked("dataset.toml", capsys) == []
    shipped = toml.load(pages.ROOT / "configs" / "training" / "sdxl_lora.toml")
    shipped = {key: value for section in shipped.values() for key, value in section.items()}
    for key, value in toml.loads(run.text).items():
        if key not in ("pretrained_model_name_or_path", "dataset_config", "output_dir", "output_name", "logging_dir"):
            assert shipped[key] == value, key


@pytest.mark.slow
def test_the_size_that_memory_prints_is_checks(capsys, monkeypatch):
    """The one example; the table beside it was written with the same command."""
    monkeypatch.chdir(pages.ROOT)
    (example,) = pages.blocks(pages.read(pages.DOCS / "memory.md"), "sh")
    command, comment = example.text.splitlines()
    _, *words = shlex.split(command)
    assert main(words) == 0
    printed, said = (
        [float(number) for number in re.findall(r"(\d+\.\d+)", line)]
        for line in (re.search(r"^optimizer state .*$", capsys.readouterr().out, re.MULTILINE)[0], comment)
    )
    assert printed == pytest.approx(said, rel=5e-3)  # MiB of state, bytes per parameter, MiB of the file


def test_original_names_are_the_classes_that_the_page_says():
    page = pages.read(pages.DOCS / "techniques.md").partition("## Names of the original documents")[2]
    rows = re.findall(r"^\| (`.*`) \| `(\w+)` \|$", page, re.MULTILINE)
    assert len(rows) == len(CLASSES)
    for aliases, target in rows:
        for alias in re.findall(r"\w+", aliases):
            assert issubclass(getattr(hina_kohya, alias), getattr(hina_kohya, target))


def first_cells(text):
    """Words in the first column's code, over the rows of all tables."""
    cells = re.findall(r"^\| ([^|]*) \|", text, re.MULTILINE)
    return {word for cell in cells for code in re.findall(r"`([^`]+)`", cell) for word in re.findall(r"\w+", code)}


def arguments(name, capsys):
    """Argument -> default, of a class, as `hina-kohya optimizers` prints them."""
    assert main(["optimizers", name]) == 0
    table = capsys.readouterr().out.partition("\nargument ")[2].partition("\n\n")[0]
    found = dict(re.findall(r"^(\w+)  +(\S+)", table, re.MULTILINE))
    assert "lr" in found
    return found


def switches(defaults):
    return {name for name, default in defaults.items() if default in ("True", "False")}


def test_every_switch_is_on_the_page_and_none_that_is_not_there(capsys):
    page = pages.read(pages.DOCS / "techniques.md").partition("## Options, presets, roles")[0]
    common, _, single = page.partition("## Switches of single classes")
    everywhere = arguments("HinaAdamW", capsys)
    own = {
        argument: default
        for name in CLASSES
        for argument, default in arguments(name, capsys).items()
        if argument not in everywhere
    }
    assert first_cells(common) - {"wd_"} <= set(everywhere)
    assert first_cells(single) <= set(own)
    assert switches(everywhere) - {"compile", "override_hyperparameters"} <= first_cells(common)
    assert switches(own) - {"verbose", "full_finetune", "bias_correct_confidence"} <= first_cells(single)
