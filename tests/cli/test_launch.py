"""`hina-kohya launch` and `python -m hina_kohya.launch`: the script is found, checked and started with the hooks."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from hina_kohya import launch as module
from hina_kohya.check import report
from hina_kohya.cli import launch, main
from hina_kohya.trainers.errors import UserError
from tests.support.children import VENV

pytestmark = pytest.mark.usefixtures("forked_python")

SCRIPT = """
import argparse
import sys
import library.train_util

def setup_parser():
    parser = argparse.ArgumentParser()
    for name in ("--config_file", "--network_module", "--optimizer_type", "--output_dir", "--train_data_dir",
                 "--pretrained_model_name_or_path"):
        parser.add_argument(name, type=str)
    parser.add_argument("--learning_rate", type=float)
    return parser

print(__name__, sys.path[0] == {folder!r}, sys.argv[1:])
print("hooked" if hasattr(library.train_util.get_optimizer, "__wrapped__") else "plain")
sys.exit(int(sys.argv[-1]))
"""


@pytest.fixture
def checkout(tmp_path):
    """As much of sd-scripts as a launcher meets."""
    folder = tmp_path / "sd scripts"
    (folder / "library").mkdir(parents=True)
    (folder / "library" / "__init__.py").touch()
    (folder / "library" / "train_util.py").write_text("def get_optimizer(args, trainable_params): ...\n")
    (folder / "train_network.py").write_text(SCRIPT.format(folder=str(folder)))
    return folder


@pytest.fixture
def started(monkeypatch):
    """The command that would be run."""
    commands = []

    class Process:
        def __init__(self, command):
            commands.append(command)

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def wait(self):
            return 7

    monkeypatch.setattr(launch, "subprocess", types.SimpleNamespace(Popen=Process))  # a check starts processes, too
    return commands


def run(command, cwd, **env):
    paths = os.pathsep.join(map(str, (Path(__file__).parents[2], VENV)))
    environment = os.environ | {"PYTHONPATH": paths, **env}
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.own_python
def test_the_module_runs_a_script_as_python_would(checkout, tmp_path):
    done = run(["hina_kohya.launch", str(checkout / "train_network.py"), "--config_file", "x y.toml", "3"], tmp_path)
    assert done.stdout.splitlines() == ["__main__ True ['--config_file', 'x y.toml', '3']", "hooked"]
    assert done.returncode == 3


@pytest.mark.slow
def test_the_module_finds_a_script_by_name(checkout, tmp_path):
    done = run(["hina_kohya.launch", "train_network.py", "0"], tmp_path, SD_SCRIPTS_HOME=str(checkout))
    assert (done.returncode, done.stdout.splitlines()[1]) == (0, "hooked")


@pytest.mark.slow
def test_the_module_says_what_is_missing(tmp_path):
    done = run(["hina_kohya.launch", "nothing.py"], tmp_path, SD_SCRIPTS_HOME="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("hina-kohya: error: there is no script nothing.py; set SD_SCRIPTS_HOME")
    with pytest.raises(UserError, match="example: accelerate launch -m"):
        module.main([])


@pytest.mark.slow
def test_through_accelerate(checkout, tmp_path):
    own = ["hina_kohya.cli", "launch", "--sd-scripts", str(checkout), "--no-check"]
    words = [*own, "--cpu", "train_network.py", "--seed", "0"]
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["__main__ True ['--seed', '0']", "hooked"]


def test_what_goes_where(checkout, started):
    words = [
        "launch",
        "--sd-scripts",
        str(checkout),
        "--no-check",
        "--num_processes",
        "2",
        "train_network.py",
        "--config_dir",
        "a.py",
    ]
    assert main(words) == 7
    assert started[0][1:] == [
        *("-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "hina_kohya.launch"),
        *(str(checkout / "train_network.py"), "--config_dir", "a.py"),
    ]


def test_a_bad_config_is_not_started(checkout, tmp_path, started, capsys):
    config = tmp_path / "bad.toml"
    config.write_text('learning_rte = 1e-4\nnetwork_module = "networks.lora"\n')
    words = ["--sd-scripts", str(checkout), "train_network.py", "--config_file", str(config)]
    assert main(["launch", *words]) == 1
    assert not started
    said = capsys.readouterr()
    assert "learning_rte" in said.out
    assert "add --no-check" in said.err
    assert main(["launch", "--no-check", *words]) == 7


def test_the_words_are_checked_without_a_config_file(checkout, tmp_path, started, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "data" / "2_cats").mkdir(parents=True)
    (tmp_path / "data" / "2_cats" / "1.png").touch()
    (checkout / "networks").mkdir()
    (checkout / "networks" / "lora.py").write_text("def create_network(multiplier, network_dim, **kwargs): ...\n")
    monkeypatch.setattr(report, "forecast_of", lambda *_: ("", True))  # that network is no real one
    own = ["launch", "--sd-scripts", str(checkout), "train_network.py"]
    good = ["--pretrained_model_name_or_path", "model.safetensors", "--train_data_dir", "data", "--output_dir", "out"]
    good += ["--network_module", "networks.lora", "--learning_rate", "1e-4"]
    assert main([*own, *good, "--optimiser_type", "AdamW"]) == 1
    assert not started
    assert "there is no option --optimiser_type" in capsys.readouterr().out
    assert main([*own, *good]) == 7
    assert started


def test_a_fork_that_computes_its_options_is_started_unchecked(checkout, started, capsys):
    script = checkout / "train_network.py"
    script.write_text(
        script.read_text().replace("name, type=str", 'f"{name}", type=str').replace('for name in ("', 'for name in {"')
    )
    script.write_text(script.read_text().replace('path"):', 'path"}:'))
    assert main(["launch", "--sd-scripts", str(checkout), "train_network.py", "--seed", "1"]) == 7
    assert "not checked: an option of" in capsys.readouterr().out


def test_ctrl_c_waits_for_the_trainer(checkout, started, monkeypatch):
    answers = iter([KeyboardInterrupt, KeyboardInterrupt, 130])

    def wait(_):
        answer = next(answers)
        if answer is KeyboardInterrupt:
            raise answer
        return answer

    monkeypatch.setattr(launch.subprocess.Popen, "wait", wait)
    assert main(["launch", "--sd-scripts", str(checkout), "--no-check", "train_network.py"]) == 130


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which script?"),
        (["nothing.py"], "there is no nothing.py here"),
        (["--sd-scripts", "/", "a.py"], "no checkout"),
    ],
)
def test_errors(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    assert main(["launch", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_script_in_a_checkout(checkout, capsys):
    assert main(["launch", "--sd-scripts", str(checkout), "sdxl_train_netwrok.py"]) == 2
    assert "is it spelt right?" in capsys.readouterr().err


def test_a_trainer_of_whole_models_is_started_unchecked(checkout, tmp_path, started, capsys):
    (checkout / "sdxl_train.py").touch()
    assert main(["launch", "--sd-scripts", str(checkout), "sdxl_train.py", "--config_file", "any.toml"]) == 7
    assert "are not checked" in capsys.readouterr().out
