"""`hina-kohya adlrns run` on a tiny network, and what it compares with."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from hina_kohya.adlrns.layer.compression import compress
from hina_kohya.adlrns.layer.rivals import Routed, Truncated
from hina_kohya.adlrns.layer.running import with_one_rank, without_means
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
        "DyLoRA, cut, rank 6",
        "RaNA-like, rank 6",
        "dynamic without cells, 60 %",
        "dynamic without means, 60 %",
        "dynamic without water level, 60 %",
        "dynamic, 60 %",
        "dynamic, tuned, 60 %",
    ]
    assert rows["dense"]["percent"] == 100
    dense = 64 * 16 + 16 * 16 + 16 * 64
    static = 100 * 6 * (80 + 32 + 80) / dense
    assert rows["static, tuned, rank 6"]["percent"] == rows["DyLoRA, cut, rank 6"]["percent"] == pytest.approx(static)
    assert 0.8 * static < rows["RaNA-like, rank 6"]["percent"] < 1.05 * static
    for name in ("dynamic, 60 %", "dynamic without cells, 60 %", "dynamic without water level, 60 %"):
        assert 20 < rows[name]["percent"] < 65
    assert rows["static, tuned, rank 6"]["psnr"] > rows["static, both metrics, rank 6"]["psnr"]
    assert rows["dynamic, tuned, 60 %"]["psnr"] > rows["dynamic, 60 %"]["psnr"]
    assert rows["dynamic, 60 %"]["psnr"] > rows["dynamic without means, 60 %"]["psnr"]
    assert "| dynamic, tuned, 60 % |" in (out / "results.md").read_text()
    assert (out / "psnr_per_mac.png").stat().st_size > 5000
    assert "| dense |" in capsys.readouterr().out


def test_only_some_methods(config, tmp_path):
    assert main(["adlrns", "run", "--config", str(config), "-o", str(tmp_path), *WORDS, "--methods", "rana"]) == 0
    assert [row["family"] for row in json.loads((tmp_path / "results.json").read_text())] == ["dense", "RaNA-like"]


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


# What it compares with


def test_dylora_trains_every_prefix_and_cuts_where_told():
    model, x = small()
    cut = Truncated(static_ranks(model, [x], 4), seed=0).train()
    up = [pair.second.weight.detach().clone() for pair in cut.pairs]
    seen = set()
    for _ in range(30):
        cut(x).square().mean().backward()
        assert len({pair.use for pair in cut.pairs}) == 1
        seen.add(cut.pairs[0].use)
    assert seen == {1, 2, 3, 4}
    cut.eval().cut(2)
    expected = x
    for number, pair in enumerate(cut.pairs):
        expected = torch.relu(expected) if number else expected
        expected = expected @ pair.first.weight[:2].T @ up[number][:, :2].T + pair.second.bias
    torch.testing.assert_close(cut(x), expected)
    assert cut.macs() == 2 * (8 + 6 + 6 + 5)


def test_rana_keeps_the_directions_that_do_the_most_at_the_cost_of_a_static_rank():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(12, 10)), torch.randn(400, 12)
    routed = Routed(static_ranks(model, [x], 10, two_sided=False), 6)
    routed.fit(x)
    layer = routed.routers[0]
    routed(x)
    assert layer.first.out_features == 6 + round(3 * 10 / 12)
    assert routed.macs() == pytest.approx(6 * (12 + 10), rel=0.02)
    hidden = layer.first(x)
    part = hidden.square() * layer.second.weight.square().sum(0)
    kept = part >= layer.threshold
    assert (part[kept].min() >= part[~kept].max()).item()
    torch.testing.assert_close(routed(x), layer.second(hidden * kept))


def test_components_off():
    model, x = small()
    compressed = compress(model, [x], 80, cells=3)
    planned = compressed.planned
    flat = with_one_rank(copy.deepcopy(compressed))
    flat(x)
    assert flat.spent / len(x) == pytest.approx(flat.planned)
    assert 0.6 * planned < flat.planned <= planned
    for name, layer in compressed.layers.items():
        ranks = layer.plan()[:-1]
        assert len(set(ranks)) > 1
        assert set(flat.layers[name].plan()[:-1]) == {int(float((torch.tensor(ranks) * layer.share).sum()))}
    bare = without_means(copy.deepcopy(flat))
    first, second = ((layer.down[: layer.plan()[0]], layer) for layer in bare.layers.values())
    hidden, expected = x, None
    for down, layer in (first, second):
        expected = hidden @ down.T @ layer.up[:, : len(down)].T + layer.bias[-1]
        hidden = torch.relu(expected)
    torch.testing.assert_close(bare(x), expected)
    assert not torch.allclose(bare(x), flat(x))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)), torch.randn(40, 8)


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
