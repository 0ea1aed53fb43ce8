"""What every command does alike: near names, one line for an unexpected error, `--traceback`."""

import pytest

from hina_kohya.cli import COMMANDS, UNEXPECTED, main


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unexpected_error_is_one_line_and_an_exit_code(command, monkeypatch, capsys):
    def trip(_argv):
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr(f"hina_kohya.cli.{command}.main", trip)
    assert main([command]) == UNEXPECTED
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"hina-kohya {command}: unexpected ZeroDivisionError: division by zero"
    assert len(said) == 2
    for words in (["--traceback", command], [command, "--traceback"]):
        assert main(words) == UNEXPECTED
        assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_word_of_a_trainer_is_left_to_it(monkeypatch):
    given = []
    monkeypatch.setattr("hina_kohya.cli.launch.main", lambda argv: given.append(argv) or 0)
    main(["launch", "train_network.py", "--traceback"])
    assert given == [["train_network.py", "--traceback"]]


@pytest.mark.parametrize(("typed", "meant"), [("chekc", "check"), ("optimizer", "optimizers"), ("doctr", "doctor")])
def test_near_commands_are_named(typed, meant, capsys):
    with pytest.raises(SystemExit) as left:
        main([typed])
    assert left.value.code == 2
    assert f"there is no command {typed}; did you mean {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "run.toml", "--frmat", "json"], "there is no option --frmat; did you mean --format"),
        (["check", "--scrpt=sdxl_train_network.py", "run.toml"], "there is no option --scrpt; did you mean --script"),
        (["doctor", "--sdscripts", "here"], "there is no option --sdscripts; did you mean --sd-scripts?"),
        (["optimizers", "--alll"], "there is no option --alll; did you mean --all?"),
        (["optimizers", "AdamW", "Lion"], "one word too many: Lion"),
        (["patch", "status", "--ycoris"], "there is no option --ycoris; "),
        (["adlrns", "show", "x.safetensors", "--output=y.png", "--bins", "2"], "there is no option --bins; "),
        # Where the misspelt option is one that is required, or something else that is required is missing.
        (["adlrns", "export", "x.safetensors", "--rnk", "4", "-o", "y"], "no option --rnk; did you mean --rank?"),
        (["adlrns", "run", "--confg=x.toml"], "there is no option --confg; did you mean --config?"),
        (["check", "--frmat=json"], "there is no option --frmat; did you mean --format"),
        (["--verson"], "there is no option --verson; did you mean --version?"),
        (
            ["adlrns", "export", "x.safetensors", "-o", "y"],
            "one of the arguments --rank --budget --mean-field --per-bin is",
        ),
        (["check", "--form=json"], "the following arguments are required: CONFIG.toml"),
    ],
)
def test_an_option_that_there_is_not(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(_words):
        raise KeyboardInterrupt

    monkeypatch.setattr("hina_kohya.cli.doctor.main", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "hina-kohya doctor: stopped\n"
