"""`hina-kohya adlrns export`: plain files, loaded by LyCORIS's LoCon, compute what the module does."""

import pytest
import torch
from matplotlib.axes import Axes
from safetensors import safe_open
from safetensors.torch import load_file

from hina_kohya.adlrns.adapter.files import export_bins
from hina_kohya.cli import main
from hina_kohya.loras.summary import blocks_of_names
from tests.support.small_networks import TextEncoder, UNet, batch, create, frozen, randomise


@pytest.fixture
def saved(tmp_path):
    """(unet, network, file), with the file's order of directions: each state's table differs"""
    made = create(frozen(UNet()), frozen(TextEncoder()), dim=6, bins=3)
    randomise(made)
    file = tmp_path / "lora.safetensors"
    made.save_weights(str(file), None, {"ss_network_args": "{}", "ss_base_model_version": "sd"})
    unet, text = frozen(UNet()), frozen(TextEncoder())
    network = create(unet, text, dim=6, bins=3)
    assert network.load_weights(str(file)) == {}
    return unet, network, file


def plain(file):
    """The U-Net with the file applied by LyCORIS, as LoCon."""
    from hina_kohya.lycoris import create_network_from_weights

    unet, text = frozen(UNet()), frozen(TextEncoder())
    network, _ = create_network_from_weights(1.0, str(file), None, text, unet)
    assert {type(lora).__name__ for lora in network.unet_loras} == {"LoConModule"}
    network.apply_to(text, unet, True, True)
    network.double()
    return unet


def as_table(network, kept):
    """kept: module -> [K, R]"""
    for lora in network.adlrns_modules():
        lora.set_table(kept(lora), *lora.adlrns_stats.clone())


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rank(saved, tmp_path, rank, capsys):
    unet, network, file = saved
    out = tmp_path / "plain.safetensors"
    assert main(["adlrns", "export", str(file), "--rank", str(rank), "-o", str(out)]) == 0
    assert f"4 modules, rank {rank} to {rank}" in capsys.readouterr().out
    as_table(network, lambda lora: (torch.arange(lora.lora_dim) < rank).expand(lora.adlrns_kept.shape))
    x, timesteps = batch()
    torch.testing.assert_close(plain(out)(x, timesteps), unet(x, timesteps), rtol=1e-5, atol=1e-5)
    for name, lora in ((lora.lora_name, lora) for lora in network.adlrns_modules()):  # networks.lora's arithmetic
        held = {key.removeprefix(f"{name}."): each for key, each in load_file(out).items() if key.startswith(name)}
        up, down = held["lora_up.weight"].flatten(1), held["lora_down.weight"].flatten(1)
        diff = up @ down * float(held["alpha"]) / rank
        torch.testing.assert_close(diff.view(lora.shape), lora.get_diff_weight()[0], rtol=1e-5, atol=1e-7)
    with safe_open(out, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_network_dim"] == str(rank)
    assert metadata["ss_base_model_version"] == "sd"
    assert not {"hina_adlrns", "ss_network_args"} & set(metadata)
    assert not list(tmp_path.glob("*.unfinished"))


def test_mean_field_is_the_merge(saved, tmp_path):
    unet, network, file = saved
    out = tmp_path / "plain.safetensors"
    assert main(["adlrns", "export", str(file), "--mean-field", "-o", str(out)]) == 0
    network.restore()
    for lora in network.loras:
        lora.merge_to(1.0)
    x, timesteps = batch()
    torch.testing.assert_close(plain(out)(x, timesteps), unet(x, timesteps), rtol=1e-5, atol=1e-5)


def test_budget(saved, tmp_path, capsys):
    _, network, file = saved
    out = tmp_path / "plain.safetensors"
    assert main(["adlrns", "export", str(file), "--budget", "2", "-o", str(out)]) == 0
    x, timesteps = batch()
    assert plain(out)(x, timesteps).isfinite().all()
    downs = [each.shape[0] for key, each in load_file(out).items() if key.endswith("lora_down.weight")]
    assert 0 < sum(downs) <= 2 * len(network.adlrns_modules())


def test_a_file_for_each_bin(saved, tmp_path, capsys):
    unet, _, file = saved
    assert main(["adlrns", "export", str(file), "--per-bin", "-o", str(tmp_path / "part.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    x, _ = batch()
    for number, (start, end, noise) in enumerate(((0, 1 / 3, 0.8), (1 / 3, 2 / 3, 0.5), (2 / 3, 1, 0.2))):
        path = tmp_path / f"part-{number + 1}of3.safetensors"
        assert lines[number].startswith(f"start_percent {start:.3f}, end_percent {end:.3f}: {path}: 4 modules, rank ")
        timesteps = torch.full((len(x),), 1000 * noise)
        torch.testing.assert_close(plain(path)(x, timesteps), unet(x, timesteps), rtol=1e-5, atol=1e-5)


def test_percents_of_a_shifted_schedule(saved, tmp_path):
    _, _, file = saved
    bins = export_bins(file, tmp_path / "part.safetensors", shift=3.0)
    for number, each in enumerate(bins):
        for part, noise in ((each.start, 1 - number / 3), (each.end, 1 - (number + 1) / 3)):
            assert 3 * (1 - part) / (1 + 2 * (1 - part)) == pytest.approx(noise)


def test_what_it_refuses(saved, tmp_path, capsys):
    _, _, file = saved
    out = str(tmp_path / "plain.safetensors")
    assert main(["adlrns", "export", str(file), "--rank", "2", "-o", out]) == 0
    half = tmp_path / "half.safetensors"
    half.write_bytes(file.read_bytes()[:1000])
    for source, how, says in (
        (out, ["--rank", "2"], "no adlrns_kept in the file"),
        (tmp_path / "none.safetensors", ["--rank", "2"], "there is no file"),
        (half, ["--mean-field"], "not a whole .safetensors file"),
        (file, ["--rank", "0"], "rank = 0 is outside [1, "),
        (file, ["--rank", "99"], "rank = 99 is outside [1, "),
        (file, ["--rank", "2", "--shift", "3"], "it needs --per-bin"),
        (file, ["--per-bin", "--shift", "0"], "shift = 0 must be a number above 0"),
        (file, ["--per-bin", "--shift", "inf"], "shift = inf must be a number above 0"),
    ):
        capsys.readouterr()
        assert main(["adlrns", "export", str(source), *how, "-o", str(tmp_path / "no.safetensors")]) == 2
        assert says in capsys.readouterr().err
    for words in ([], ["--rank", "2", "--mean-field"]):
        with pytest.raises(SystemExit):
            main(["adlrns", "export", str(file), *words, "-o", out])


def test_the_input_is_never_written_over(saved, capsys):
    _, _, file = saved
    before, folder = file.read_bytes(), file.parent
    link, hard, sub = folder / "link.safetensors", folder / "hard.safetensors", folder / "sub"
    sub.mkdir()
    link.symlink_to(file)
    hard.hardlink_to(file)
    for target in (file, link, hard, sub / ".." / file.name):
        for command in (["export", str(file), "--rank", "2"], ["show", str(file)]):
            assert main(["adlrns", *command, "-o", str(target)]) == 2
            assert "is the file that is read, and would be lost" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert not list(folder.glob("*.unfinished"))


@pytest.mark.slow
def test_show(saved, tmp_path, capsys):
    _, network, file = saved
    picture = tmp_path / "tables.png"
    assert main(["adlrns", "show", str(file), "-o", str(picture)]) == 0
    said = capsys.readouterr().out
    tables = [lora.adlrns_kept.double().sum(1).expand(3) for lora in network.adlrns_modules()]
    for number in range(3):
        mean = sum(float(table[number]) for table in tables) / len(tables)
        assert f"bin {number + 1} of 3: mean rank {mean:.3g}, modules from " in said
    assert picture.stat().st_size > 10_000
    assert main(["adlrns", "show", str(tmp_path / "none.safetensors")]) == 2
    assert "there is no file" in capsys.readouterr().err


def test_rows_of_the_picture_are_named_by_blocks_of_the_model(saved, tmp_path, monkeypatch):
    _, network, file = saved
    ticks, whole = {}, Axes.set_yticks

    def noted(axes, places, labels):
        ticks[axes] = places, labels
        return whole(axes, places, labels)

    monkeypatch.setattr(Axes, "set_yticks", noted)
    assert main(["adlrns", "show", str(file), "-o", str(tmp_path / "tables.png")]) == 0
    ((places, labels),) = ticks.values()
    names = [lora.lora_name for lora in network.adlrns_modules()]
    assert labels == list(dict.fromkeys(blocks_of_names(names).values()))
    assert list(places) == sorted(places)
    assert places[0] == list(blocks_of_names(names).values()).count(labels[0]) / 2
