"""What `inspect` says is what dense matrices say, and it says it in one screen."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from hina_kohya.cli import main
from hina_kohya.loras import likeness, summary
from hina_kohya.loras.errors import AdapterError
from hina_kohya.trainers.facts.architectures import ARCHITECTURES
from tests.support import lora_files as files
from tests.support.dense import dense
from tests.support.kohya_names import kohya


@pytest.mark.slow
@pytest.mark.parametrize("kind", files.KINDS)
def test_singular_values_are_those_of_the_dense_matrix(tmp_path, kind):
    files.lycoris(tmp_path / "a.safetensors", kind)
    for module in summary.summarise(tmp_path / "a.safetensors").modules:
        expected = torch.linalg.svdvals(dense(tmp_path / "a.safetensors")[module.name])
        assert (module.values - expected[: len(module.values)]).abs().max() <= 1e-6 * expected[0]
        assert (expected[len(module.values) :] <= 1e-6 * expected[0]).all()
        energies = expected.square().cumsum(0) / expected.square().sum()
        assert module.rank_for(0.98) == int((energies < 0.98).sum()) + 1


def test_likeness_is_that_of_dense_matrices(tmp_path):
    files.lycoris(tmp_path / "a.safetensors", "lokr", seed=1)
    files.lycoris(tmp_path / "b.safetensors", "lora", seed=2)
    blocks, lone = likeness.compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert lone == (0, 0)
    whole = likeness.Likeness()
    for block in blocks.values():
        whole.add(block)
    a, b = dense(tmp_path / "a.safetensors"), dense(tmp_path / "b.safetensors")
    inner = sum((a[name] * b[name]).sum() for name in a)
    norms = [sum(matrix.square().sum() for matrix in each.values()).sqrt() for each in (a, b)]
    assert whole.cosine == pytest.approx(float(inner / norms[0] / norms[1]), rel=1e-6)
    inside = 0.0
    for name in a:
        u, s, vt = torch.linalg.svd(b[name], full_matrices=False)
        rank = int((s > 1e-6 * s[0]).sum())
        inside += float((u[:, :rank].T @ a[name] @ vt[:rank].T).square().sum())
    assert whole.overlap == pytest.approx(inside / float(norms[0] ** 2), rel=1e-6)


def test_a_file_is_like_itself_and_unlike_its_opposite(tmp_path):
    files.plain(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    save_file(
        {key: -tensor if "lora_up" in key else tensor for key, tensor in tensors.items()}, tmp_path / "b.safetensors"
    )
    for other, cosine in (("a", 1.0), ("b", -1.0)):
        blocks, _ = likeness.compare(tmp_path / "a.safetensors", tmp_path / f"{other}.safetensors")
        for block in blocks.values():
            assert block.cosine == pytest.approx(cosine)
            assert block.overlap == pytest.approx(1.0)


def test_files_without_a_common_module(tmp_path):
    files.plain(tmp_path / "a.safetensors", {"lora_unet_x": (6, 5)})
    files.plain(tmp_path / "b.safetensors", {"lora_unet_y": (6, 5)})
    with pytest.raises(AdapterError, match="no module in common"):
        likeness.compare(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_model_fits_a_screen(tmp_path, name, capsys):
    shapes = dict.fromkeys(kohya(ARCHITECTURES[name]), (3, 2))
    tags = {"10_girl": {"1girl": 30, "smile": 7}}
    files.plain(tmp_path / "a.safetensors", shapes, rank=2, metadata={"ss_tag_frequency": json.dumps(tags)})
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 48
    assert max(len(line) for line in lines) <= 160
    assert f"{len(shapes)} modules: LoRA {len(shapes)}" in lines[1]
    assert any("1girl 30, smile 7" in line for line in lines)
    counts = [int(match[1]) for line in lines if (match := re.match(r"(?:unet|te\d?) .*?\s{2,}(\d+) ", line))]
    assert sum(counts) == len(shapes)


@pytest.mark.slow
def test_one_picture_of_one_file_and_of_two(tmp_path, capsys):
    files.lycoris(tmp_path / "a.safetensors", "lokr")
    files.lycoris(tmp_path / "b.safetensors", "loha")
    for words in (["a"], ["a", "b"]):
        picture = tmp_path / f"{len(words)}.png"
        paths = [str(tmp_path / f"{word}.safetensors") for word in words]
        assert main(["inspect", *paths, "-o", str(picture)]) == 0
        assert f"written to {picture}" in capsys.readouterr().out
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", paths[0], "-o", paths[1]]) == 2
    assert "must end with .png" in capsys.readouterr().err


def test_training_that_is_not_told_or_told_badly(tmp_path, capsys):
    for metadata, said in (
        (None, "the file says nothing about its training"),
        ({"ss_tag_frequency": "[1, 2]"}, "tags: not readable"),
        ({"ss_tag_frequency": "{"}, "tags: not readable"),
        ({"ss_learning_rate": "0.0001", "ss_unet_lr": "None"}, "rates: lr 0.0001"),
    ):
        files.plain(tmp_path / "a.safetensors", metadata=metadata)
        assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("command", ["resize", "merge", "inspect"])
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"hina-kohya {command} " in capsys.readouterr().out.partition("examples:")[2]


def test_two_doras_can_be_compared_and_what_is_not_looked_at_is_said(tmp_path, capsys):
    for seed, name in enumerate("ab"):
        files.lycoris(tmp_path / f"{name}.safetensors", "lora", seed=seed, weight_decompose=True)
    paths = [str(tmp_path / f"{name}.safetensors") for name in "ab"]
    for words in (paths[:1], paths):
        assert main(["inspect", *words]) == 0
        assert "magnitudes act on the base model and are not looked at" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_of_zeros_can_be_looked_at(tmp_path, capsys):
    tensors = files.plain(tmp_path / "a.safetensors")
    save_file(
        {key: tensor * 0 if "lora_up" in key else tensor for key, tensor in tensors.items()}, tmp_path / "a.safetensors"
    )
    for words in ([], [str(tmp_path / "a.safetensors")]):
        picture = ["-o", str(tmp_path / "a.png")]
        assert main(["inspect", str(tmp_path / "a.safetensors"), *words, *picture]) == 0
        assert "nan" not in capsys.readouterr().out
