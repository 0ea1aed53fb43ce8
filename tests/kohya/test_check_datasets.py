"""The file of dataset_config: what sd-scripts' own tables refuse, said before a model is loaded."""

import os
import subprocess
from pathlib import Path

import pytest

from hina_kohya.check import report

GOOD = """
[general]
caption_extension = ".txt"
[[datasets]]
resolution = 512
batch_size = 2
[[datasets.subsets]]
image_dir = "images"
num_repeats = 2
"""
# what is changed -> the key that is named; measured with sd-scripts' ConfigSanitizer (the test below)
MISTAKES = {
    ("num_repeats = 2", "num_repeat = 2"): "dataset.toml [[datasets]] 1 subset 1: num_repeat",
    ('caption_extension = ".txt"', 'caption_extention = ".txt"'): "dataset.toml [general]: caption_extention",
    ("num_repeats = 2", "num_repeats = 2.0"): "dataset.toml [[datasets]] 1 subset 1: num_repeats",
    ("resolution = 512", 'resolution = "512"'): "dataset.toml [[datasets]] 1: resolution",
    ("resolution = 512", "resolution = [512, 512, 512]"): "dataset.toml [[datasets]] 1: resolution",
    ("batch_size = 2", "validation_split = 0"): "dataset.toml [[datasets]] 1: validation_split",
    ("batch_size = 2", "network_multiplier = 1"): "dataset.toml [[datasets]] 1: network_multiplier",
    ("[general]", "[generall]"): "dataset.toml: generall",
    ('image_dir = "images"', ""): "dataset.toml [[datasets]] 1 subset 1: image_dir",
    ("num_repeats = 2", "resolution = 512"): "dataset.toml [[datasets]] 1 subset 1: resolution",
    ("num_repeats = 2", 'metadata_file = "dataset.toml"\ncaption_extension = ".txt"'):
        "dataset.toml [[datasets]] 1 subset 1: caption_extension",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(folder, text):
    (folder / "dataset.toml").write_text(text, encoding="utf-8")
    return [each.key for each in report.check("dataset.toml").findings]


def test_a_good_file_is_silent(folder):
    assert keys(folder, GOOD) == []
    assert keys(folder, GOOD.replace("resolution = 512", "resolution = [512, 768]\ntoken_warmup_step = 5")) == []


@pytest.mark.parametrize("change", MISTAKES, ids=lambda change: change[1].replace("\n", "; "))
def test_a_planted_mistake_is_found_and_nothing_else(folder, change):
    assert keys(folder, GOOD.replace(*change)) == [MISTAKES[change]]


def test_images_that_are_not_there(folder):
    (finding,) = report.check(str(_written(folder, GOOD.replace('"images"', '"nowhere"')))).findings
    assert finding.what == "nowhere does not exist"


def test_it_is_checked_from_the_training_toml(folder):
    _written(folder, GOOD.replace("num_repeats", "num_repeat"))
    (folder / "dataset.yaml").touch()
    (folder / "config.toml").write_text('dataset_config = "dataset.toml"')
    (folder / "other.toml").write_text('dataset_config = "dataset.yaml"')
    (folder / "broken.toml").write_text("[[datasets]]\nresolution = .5")
    (folder / "third.toml").write_text('dataset_config = "broken.toml"')
    for config, words in (
        ("config.toml", "not known there"),
        ("other.toml", ".toml or .json"),
        ("third.toml", "0.5 and not .5"),
    ):
        found = [each for each in report.check(config).findings if each.rule == "dataset_unreadable"]
        assert [words in each.what for each in found] == [True], config


def _written(folder, text):
    (folder / "dataset.toml").write_text(text, encoding="utf-8")
    return folder / "dataset.toml"


HOME = os.environ.get("SD_SCRIPTS_HOME", "")
HARNESS = Path(os.environ.get("HINA_HARNESS", Path(__file__).parents[3] / "shared" / "harness"))
PYTHON = Path.home() / ".cache/hina-harness/venv/bin/python"
SANITIZE = """
import sys, toml, logging
sys.path.insert(0, sys.argv[1])
logging.disable(logging.CRITICAL)
from library.config_util import ConfigSanitizer
for text in sys.stdin.read().split("\\0"):
    try:
        ConfigSanitizer(True, True, False, True).sanitize_user_config(toml.loads(text))
        print("good")
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.skipif(not (HOME and PYTHON.exists()), reason="needs sd-scripts and the harness")
def test_sd_scripts_refuses_the_same(tmp_path):
    texts = [GOOD, *(GOOD.replace(*change) for change in MISTAKES)]
    run = subprocess.run(
        [PYTHON, "-c", SANITIZE, HOME],
        input="\0".join(texts),
        env={**os.environ, "PYTHONPATH": str(HARNESS / "stubs")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split()[-len(texts) :] == ["good"] + ["MultipleInvalid"] * len(MISTAKES)
