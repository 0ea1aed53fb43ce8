"""`hina-kohya check`: exit codes, what is printed, and that the words after -- are sd-scripts'."""

import json
import subprocess
import sys

import pytest

from hina_kohya.check import report
from hina_kohya.cli.check import main
from hina_kohya.trainers.errors import UserError

pytestmark = pytest.mark.usefixtures("forked_python")

GOOD = """
pretrained_model_name_or_path = "model.safetensors"
train_data_dir = "data"
output_dir = "output"
network_module = "hina_kohya.lycoris"
network_dim = 4
network_args = ["algo=lokr", "preset=attn-mlp"]
optimizer_type = "HinaAdamW"
learning_rate = 1e-4
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "10_cats").mkdir(parents=True)
    (tmp_path / "data" / "10_cats" / "1.png").touch()
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "good.toml").write_text(GOOD)
    return tmp_path


def printed(capsys, *words):
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def test_a_good_file_says_what_to_type_next(capsys):
    code, out, err = printed(capsys, "good", "--script", "sdxl_train_network", "--no-forecast")
    assert (code, err) == (0, "")
    assert "good.toml for sdxl_train_network.py of sd-scripts (as told)" in out
    assert "no findings in what was looked at; 1 not looked at" in out
    assert out.endswith("next: accelerate launch sdxl_train_network.py --config_file good.toml\n")


def test_where_the_trainer_is_unsure_no_launch_line_is_invented(capsys):
    code, out, _ = printed(capsys, "good")
    assert code == 0
    assert "not looked at: --script: nothing says for certain which trainer this is for" in out
    assert "accelerate launch" not in out


def test_an_error_gives_one_block_and_exit_code_1(capsys, folder):
    (folder / "bad.toml").write_text(GOOD.replace("network_dim = 4", "network_dim = 4.0"))
    code, out, _ = printed(capsys, "bad.toml")
    assert code == 1
    assert "error: network_dim: 4.0 is not a whole number\n  because  measured: " in out
    assert "\n  write    network_dim = 4\n" in out
    assert "1 error" in out
    assert out.endswith("next: correct it, and check again\n")


def test_a_warning_is_no_failure(capsys, folder):
    (folder / "odd.toml").write_text(GOOD.replace("network_dim = 4\n", ""))
    code, out, _ = printed(capsys, "odd.toml", "--no-forecast")
    assert code == 0
    assert "warning: network_dim: without it the rank is 4" in out
    assert "1 warning, " in out


def test_what_cannot_be_read_is_exit_code_2(capsys, folder):
    (folder / "broken.toml").write_text("seed = .5")
    for words in (
        ["gone.toml"],
        ["broken.toml"],
        ["good.toml", "--script", "x.py"],
        ["good.toml", "--sd-scripts", "."],
    ):
        code, out, err = printed(capsys, *words)
        assert (code, out) == (2, "")
        assert err.startswith("hina-kohya check: error: ")
        assert "Traceback" not in err


def test_words_after_two_dashes_are_those_of_sd_scripts(capsys):
    code, out, _ = printed(capsys, "good.toml", "--script", "sdxl_train_network", "--", "--v2", "--output_dir", "other")
    assert code == 1
    assert "error: v2: it means SD 2.x" in out


def test_placeholders_are_named_and_no_mistake(capsys, folder):
    (folder / "form.toml").write_text(GOOD.replace('"model.safetensors"', '"<your model>"'))
    code, out, _ = printed(capsys, "form.toml")
    assert code == 0
    assert out.endswith("\nnext: fill in pretrained_model_name_or_path\n")


def test_short_names_are_found_where_the_launcher_starts_the_run(capsys, folder):
    (folder / "short.toml").write_text(GOOD.replace("hina_kohya.lycoris", "lycoris.kohya"))
    assert printed(capsys, "short.toml")[0] == 1
    code, out, _ = printed(capsys, "short.toml", "--launched", "--script", "sdxl_train_network.py", "--no-forecast")
    assert code == 0
    assert "next: hina-kohya launch sdxl_train_network.py --config_file short.toml" in out


def test_a_file_of_datasets_is_checked_as_one(capsys, folder):
    (folder / "dataset.toml").write_text('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "data"\n')
    code, out, _ = printed(capsys, "dataset.toml")
    assert (code, out.splitlines()[0]) == (0, "dataset.toml: a file for dataset_config")


@pytest.mark.slow
def test_the_groups_that_will_result(capsys):
    code, out, _ = printed(capsys, "good.toml", "--arch", "sd15")
    assert code == 0
    assert "lokr_w1" in out
    assert "textencoder" in out
    assert "optimizer state" in out


def test_a_network_that_cannot_be_made_is_an_error(capsys, monkeypatch):
    def refuse(*_):
        raise UserError("lycoris.kohya refuses these arguments")

    monkeypatch.setattr(report, "forecast_of", refuse)
    code, out, _ = printed(capsys, "good.toml", "--arch", "sd15")
    assert code == 1
    assert "error: the network or its optimizer cannot be made: lycoris.kohya refuses" in out


@pytest.mark.slow
def test_a_network_that_only_a_checkout_has_is_no_mistake(capsys, folder):
    text = GOOD.replace("hina_kohya.lycoris", "networks.dylora").replace('"HinaAdamW"', '"AdamW"')
    (folder / "dylora.toml").write_text("".join(line for line in text.splitlines(True) if "network_args" not in line))
    code, out, _ = printed(capsys, "dylora.toml", "--arch", "sd15")
    assert code == 0
    assert "no forecast: networks.dylora cannot be forecast" in out


def test_help_shows_an_example():
    run = subprocess.run(
        [sys.executable, "-c", "from hina_kohya.cli.check import main; main(['--help'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hina-kohya check my_lokr.toml -- --learning_rate 1e-4" in run.stdout
    for option in ("--script", "--sd-scripts", "--arch", "--launched"):
        assert option in run.stdout


def test_json_for_programs(capsys, folder):
    (folder / "bad.toml").write_text(GOOD.replace("network_dim = 4", "network_dim = 4.0"))
    code, out, _ = printed(capsys, "bad.toml", "--script", "train_network", "--format", "json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["script"], told["certain"]) == (1, 1, "train_network.py", True)
    (finding,) = [each for each in told["findings"] if each["level"] == "error"]
    assert (finding["rule"], finding["key"]) == ("wrong_type", "network_dim")
    assert finding["lines"] == [{"do": "write", "line": "network_dim = 4"}]
    code, out, _ = printed(capsys, "gone.toml", "--format", "json")
    assert code == json.loads(out)["exit_code"] == 2


def test_a_command_line_to_its_end(capsys):
    words = ["--pretrained_model_name_or_path", "model.safetensors", "--train_data_dir", "data", "--output_dir", "out"]
    words += ["--network_module", "networks.lora", "--network_dim", "4", "--learning_rate", "1e-4"]
    code, out, _ = printed(capsys, "--no-forecast", "accelerate", "launch", "train_network.py", *words)
    assert (code, out.splitlines()[0]) == (
        0, "the command line: a command line, for train_network.py of sd-scripts (named there)",
    )  # fmt: skip
    assert out.endswith("next: start it\n")
    assert printed(capsys, "accelerate", "launch", "train_network.py", *words, "--network_dimm", "4")[0] == 1
    assert printed(capsys, "--no-forecast", "accelerate", "launch", "train_network.py", *words, "--xformers")[0] == 3


def test_thousands_of_findings_are_counted(capsys, folder):
    text = "".join(f"key{number} = 1\n" for number in range(300))
    (folder / "many.toml").write_text(text + GOOD)
    _, out, _ = printed(capsys, "many.toml", "--no-forecast")
    assert "and 45 more like it" in out
    assert len(out.splitlines()) < 40
    assert len(printed(capsys, "many.toml", "--no-forecast", "--all")[1].splitlines()) > 50


@pytest.mark.slow
def test_a_terminal_sees_how_far_the_forecast_is(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    code, out, err = printed(capsys, "good.toml", "--arch", "sd15")
    assert code == 0
    assert "forecast: torch is imported, 0 s" in err
    assert "forecast: the network is made" in err
    assert err.endswith("\r\x1b[K")
    assert "forecast:" not in out
