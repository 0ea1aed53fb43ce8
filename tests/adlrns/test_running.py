"""`hina-kohya adlrns run` on a tiny network, and what it compares with."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from hina_kohya.adlrns.layer.static import static_ranks
from hina_kohya.cli import main


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train]\nbatch_size = 2048\nepochs = 1\n", encoding="utf-8")
    return path


WORDS = ["--width", "16", "--dense-epochs", "2", "--budgets", "60", "--ranks", "6"]


@pytest.mark.slow
def test_it_writes_table_numbers_and_plot(config, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["adlrns", "run", "--config", str(config), "-o", str(out), *WORDS]) == 0
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())}
    assert list(rows) == [
        "dense",
        "static, input metric (SVD-LLM), rank 6",
        "static, both metrics, rank 6",
        "static, tuned, rank 6",
        "dynamic, 60 %",
        "dynamic, tuned, 60 %",
    ]
    assert rows["dense"]["percent"] == 100
    dense = 64 * 16 + 16 * 16 + 16 * 64
    static = 100 * 6 * (80 + 32 + 80) / dense
    assert rows["static, tuned, rank 6"]["percent"] == pytest.approx(static)
    assert 20 < rows["dynamic, 60 %"]["percent"] < 65
    assert rows["static, tuned, rank 6"]["psnr"] > rows["static, both metrics, rank 6"]["psnr"]
    assert rows["dynamic, tuned, 60 %"]["psnr"] > rows["dynamic, 60 %"]["psnr"]
    assert "| dynamic, tuned, 60 % |" in (out / "results.md").read_text()
    assert (out / "psnr_per_mac.png").stat().st_size > 5000
    assert "| dense |" in capsys.readouterr().out


@pytest.mark.slow
def test_only_some_methods(config, tmp_path):
    assert main(["adlrns", "run", "--config", str(config), "-o", str(tmp_path), *WORDS, "--methods", "dynamic"]) == 0
    families = [row["family"] for row in json.loads((tmp_path / "results.json").read_text())]
    assert families == ["dense", "dynamic", "dynamic, tuned"]


def test_methods_of_others_are_elsewhere_and_the_help_says_where(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["adlrns", "run", "--config", str(config), "-o", str(tmp_path), "--methods", "rana"])
    assert left.value.code == 2
    assert "invalid choice: 'rana'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["adlrns", "run", "--help"])
    assert "benchmarks.adlrns.comparison" in capsys.readouterr().out


def test_mistakes_get_a_line_not_a_traceback(config, tmp_path, capsys):
    def said(*words, path=config):
        assert main(["adlrns", "run", "--config", str(path), *words]) == 2
        return capsys.readouterr().err

    assert "does not exist" in said(path=tmp_path / "none.toml")
    assert "--ranks 65 must be from 1 to 64" in said("--ranks", "65")
    assert "--budgets 1 must be from 1.17, the cost of rank 1, to 100 percent" in said("--budgets", "1")
    assert "--dense-epochs 0 must be" in said("--dense-epochs", "0")
    config.write_text("[model]\nr_max = 32\n", encoding="utf-8")
    assert "uses, which is batch_size, epochs and lr of [train]: remove the rest, or train" in said()
    config.write_text("[train]\nepoch = 1\n", encoding="utf-8")
    assert "unknown key train.epoch; did you mean epochs" in said()


@pytest.mark.parametrize(
    "words",
    [["adlrns", "--help"], ["adlrns", "run", "--help"], ["adlrns", "export", "--help"], ["adlrns", "show", "--help"]],
)
def test_help_has_an_example_and_needs_no_torch(words, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert "\n  hina-kohya adlrns " in capsys.readouterr().out
    call = f"from hina_kohya.cli import main\ntry: main({words})\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    code = f"import sys\n{call}"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.parametrize("two_sided", [False, True])
def test_a_static_rank_is_the_truncation_in_its_metric(two_sided):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    x = torch.randn(50, 6).double() + 1
    full = static_ranks(model, [x], 5, two_sided)
    torch.testing.assert_close(full(x), model(x), rtol=1e-4, atol=1e-4)
    error = (static_ranks(model, [x], 2, two_sided)(x) - model(x)).detach()
    if not two_sided:  # the best there is of its rank for the squared error of the output
        values = torch.linalg.svdvals(x @ model[0].weight.detach().T)
        assert float(error.square().sum()) == pytest.approx(float(values[2:].square().sum()), rel=1e-3)
    with pytest.raises(ValueError, match="rank = 6 of 0 must be at most 5"):
        static_ranks(model, [x], 6, two_sided)
