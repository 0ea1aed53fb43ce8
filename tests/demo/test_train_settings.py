"""Options, TOML files and what is said about bad ones. No torch is imported by any of this."""

import shlex
import subprocess
import sys

import pytest

from hina_kohya.cli import main
from hina_kohya.demo.errors import UserError
from hina_kohya.demo.settings import FIELDS, read_settings, resume_command


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> str:
        file = tmp_path / "config.toml"
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        read_settings(list(argv))
    return str(caught.value)


def test_sections_are_flattened_and_the_command_line_wins(config):
    file = config('seed = 7\n[any]\nlearning_rate = 1\n[other]\nnetwork_args = ["algo=lokr", "factor=4"]\n')
    settings = read_settings(["--config_file", file, "--seed", "8", "--optimizer_args", "a=1", "b=2"])
    assert settings.seed == 8
    assert settings.learning_rate == 1.0
    assert type(settings.learning_rate) is float
    assert settings.network_args == ["algo=lokr", "factor=4"]
    assert settings.optimizer_args == ["a=1", "b=2"]


def test_toml_suffix_may_be_left_out(config):
    assert read_settings(["--config_file", config("seed = 7").removesuffix(".toml")]).seed == 7


def test_text_encoder_lr_may_be_a_list_of_one(config):
    assert read_settings(["--config_file", config("text_encoder_lr = [1e-3]")]).text_encoder_lr == 1e-3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat = 1e-3", "unknown key learning_rat; did you mean learning_rate?"),
        ('train_data_dir = "x"', "train_data_dir is an sd-scripts option without use here"),
        ('config_file = "x"', "unknown key config_file"),
        ('learning_rate = "1e-3"', "learning_rate must be float, got '1e-3' (str)"),
        ("seed = 1.5", "seed must be int, got 1.5"),
        ("full_bf16 = 1", "full_bf16 must be bool, got 1"),
        ('optimizer_args = "a=1"', "optimizer_args must be a list, got 'a=1'; write optimizer_args = [\"a=1\"]"),
        ("digits = [true]", "digits must be int, got True"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_bad_toml(config, text, said):
    assert said in refusal("--config_file", config(text))


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--learning_rat", "1"], "unknown option --learning_rat; did you mean learning_rate?"),
        (["--xformers"], "without use here"),
        (["stray"], "unexpected stray"),
        (["--max_train_steps", "0"], "max_train_steps is 0, must be at least 1"),
        (["--learning_rate", "-1"], "learning_rate is -1.0, must be at least 0"),
        (["--learning_rate", "nan"], "learning_rate is nan"),
        (["--learning_rate", "inf"], "learning_rate is inf"),
        (["--digits", "8", "10"], "digits is 10, must be at most 9"),
        (["--digits", "8", "8"], "none twice"),
        (["--digits"], "at least one digit"),
        (["--lr_scheduler", "cosin"], "lr_scheduler is 'cosin', must be one of constant"),
        (["--mixed_precision", "bf16x"], "did you mean bf16?"),
        (["--full_bf16"], "full_bf16 needs mixed_precision bf16"),
        (["--network_train_unet_only", "--network_train_text_encoder_only"], "exclude each other"),
        (["--dim_from_weights"], "needs network_weights"),
        (["--lr_warmup_steps", "1.5"], "whole steps"),
        (["--lr_warmup_steps", "9", "--max_train_steps", "8"], "at most max_train_steps 8"),
        (["--output_name", "a/b"], "must be a bare name"),
        (["--resume", "nowhere"], "resume nowhere does not exist"),
        (["--config_file", "nowhere"], "nowhere.toml does not exist"),
        (["--seed", "x"], "invalid int value: 'x'"),
    ],
)
def test_bad_options(argv, said):
    assert said in refusal(*argv)


def test_a_bad_value_is_one_line_and_exit_code_2(capsys):
    assert main(["train", "--max_train_steps", "0"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("hina-kohya train: error: max_train_steps is 0")


def test_the_resume_command_repeats_the_run(tmp_path):
    argv = ["--digits", "9", "--network_args", "algo=lokr", "--optimizer_args", "betas=(0.9, 0.99)", "--save_state"]
    settings = read_settings(argv)
    words = resume_command(settings, tmp_path)

    again = read_settings(shlex.split(words)[2:])
    assert again.resume == str(tmp_path)
    for name in set(FIELDS) - {"resume"}:
        assert getattr(again, name) == getattr(settings, name), name


def test_settings_and_help_need_no_torch():
    code = "import sys; from hina_kohya.cli import main; main(['train', '--help'])"
    check = (
        "import atexit, sys; atexit.register(lambda: sys.stderr.write('torch' if 'torch' in sys.modules else 'clean'))"
    )
    done = subprocess.run([sys.executable, "-c", f"{check}\n{code}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "--network_args" in done.stdout
    assert "example:" in done.stdout
    assert done.stderr == "clean"


def test_unknown_command_lists_the_known(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
    assert "train" in capsys.readouterr().err
