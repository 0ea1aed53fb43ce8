"""ADLRNS beside methods of others, and with parts of it off: `benchmarks.adlrns.comparison`."""

import copy
import json

import pytest
import torch
from torch import nn

from benchmarks.adlrns.comparison import main, with_one_rank, without_means
from benchmarks.adlrns.rivals import Routed, Truncated
from hina_kohya.adlrns.layer.compression import compress
from hina_kohya.adlrns.layer.static import static_ranks


@pytest.mark.slow
def test_every_method_has_its_rows(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("[train]\nbatch_size = 2048\nepochs = 1\n", encoding="utf-8")
    words = ["--width", "16", "--dense-epochs", "2", "--budgets", "60", "--ranks", "6"]
    assert main(["--config", str(config), "-o", str(tmp_path / "out"), *words]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "out" / "results.json").read_text())}
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
    static = 100 * 6 * (80 + 32 + 80) / (64 * 16 + 16 * 16 + 16 * 64)
    assert rows["DyLoRA, cut, rank 6"]["percent"] == pytest.approx(static)
    assert 0.8 * static < rows["RaNA-like, rank 6"]["percent"] < 1.05 * static
    for name in ("dynamic without cells, 60 %", "dynamic without water level, 60 %"):
        assert 20 < rows[name]["percent"] < 65
    assert rows["dynamic, 60 %"]["psnr"] > rows["dynamic without means, 60 %"]["psnr"]


@pytest.mark.slow
def test_only_some_methods(tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text("[train]\nbatch_size = 2048\nepochs = 1\n", encoding="utf-8")
    words = ["--config", str(config), "-o", str(tmp_path), "--width", "16", "--dense-epochs", "1", "--ranks", "6"]
    assert main([*words, "--methods", "rana"]) == 0
    assert [row["family"] for row in json.loads((tmp_path / "results.json").read_text())] == ["dense", "RaNA-like"]
    assert main([*words, "--ranks", "65"]) == 2
    assert "benchmarks.adlrns.comparison: error: --ranks 65 must be from 1 to 16" in capsys.readouterr().err


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)), torch.randn(40, 8)


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
