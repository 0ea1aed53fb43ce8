"""hina-kohya train with images that are held out: the best adapter, an early end, a resume, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file

from hina_kohya.cli import main
from hina_kohya.demo.data import DigitImages
from hina_kohya.watch.run import Request, read

LOKR = ["algo=lokr", "factor=4", "preset=attn-mlp"]
QUICK = ["--train_batch_size", "4", "--learning_rate", "1e-2", "--judge", "0", "--network_dim", "4"]
HELD_OUT = ["--validation_split", "0.02", "--validate_every_n_steps", "1"]


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(folder: Path, *argv: str, options: tuple[str, ...] = ("keep_best=true",), expect: int = 0) -> dict:
    """Run the command; its summary."""
    words = [*QUICK, *HELD_OUT, "--network_args", *LOKR, *options, "--output_dir", str(folder), *argv]
    code = main(["train", *words])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert code == expect
    return json.loads((folder / "summary.json").read_text()) if expect == 0 else {}


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def assert_equal(a: Path, b: Path) -> None:
    one, other = load_file(a), load_file(b)
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def test_images_are_held_out_by_their_seed_alone():
    whole, one, again, other = (DigitImages([8, 9], seed) for seed in (0, 0, 1, 0))
    out = one.hold_out(0.1, 5)[0]
    assert torch.equal(out, again.hold_out(0.1, 5)[0])
    assert not torch.equal(out, other.hold_out(0.1, 6)[0])
    assert len(out) == round(0.1 * len(whole)) == len(whole) - len(one)
    sides = [{bytes(image.numpy()) for image in images} for images in (whole.pixels, out, one.pixels)]
    assert sides[0] == sides[1] | sides[2]


def test_the_best_adapter_is_kept(tmp_path, capsys):
    """Its weights are those of its step, and the run is the same without it."""
    argv = ["--max_train_steps", "3", "--save_every_n_steps", "1", "--logging_dir", str(tmp_path / "logs")]
    best = train(tmp_path, *argv)["held_out"]
    said = capsys.readouterr().out
    assert "277 images of 8, 9, 6 more held out" in said
    assert f"held-out loss {best['lowest_loss']:.4f} at step {best['step']} is the lowest" in said
    file = tmp_path / "last-best.safetensors"
    assert best["file"] == str(file)
    record = json.loads(metadata(file)["hina_best"])
    assert (record["loss"], record["step"], record["values"]) == (best["lowest_loss"], best["step"], 4)
    assert metadata(file)["ss_steps"] == str(best["step"])
    assert metadata(file)["ss_num_validation_images"] == "6"
    name = "last" if best["step"] == 3 else f"last-step{best['step']:08d}"
    assert_equal(file, tmp_path / f"{name}.safetensors")

    curve = read(Request(tmp_path, tmp_path / "logs")).curves["loss/held_out"]
    assert list(curve.steps) == [1, 2, 3]
    assert min(curve.values) == pytest.approx(best["lowest_loss"])

    without = train(tmp_path / "without", "--max_train_steps", "3", options=())
    assert without["held_out"]["file"] is None
    assert without["held_out"]["step"] == best["step"]
    assert_equal(tmp_path / "last.safetensors", tmp_path / "without" / "last.safetensors")


def test_a_run_that_learns_nothing_ends(tmp_path, capsys):
    argv = ["--max_train_steps", "50", "--optimizer_type", "SGD", "--learning_rate", "1e-30"]
    summary = train(tmp_path, *argv, options=("stop_after=2",))
    assert summary["finished"]
    assert summary["steps"] == 3
    assert metadata(tmp_path / "last.safetensors")["ss_steps"] == "3"
    assert not (tmp_path / "last-best.safetensors").exists()


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_best(tmp_path):
    whole = train(tmp_path / "whole", "--max_train_steps", "4", "--save_every_n_steps", "2", "--save_state")
    state = str(tmp_path / "whole" / "last-step00000002-state")
    resumed = train(tmp_path / "resumed", "--max_train_steps", "4", "--resume", state)
    assert {**resumed["held_out"], "file": 0} == {**whole["held_out"], "file": 0}
    assert_equal(tmp_path / "whole" / "last.safetensors", tmp_path / "resumed" / "last.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--validation_split", "0.1"], "validation_split is 0.1, and was 0.02 in"),
        (["--validation_seed", "1"], "give --validation_seed 42"),
    ],
)
def test_images_that_were_trained_on_are_not_held_out(tmp_path, capsys, argv, said):
    train(tmp_path, "--max_train_steps", "1", "--save_state")
    state = str(tmp_path / "last-state")
    train(tmp_path / "other", "--max_train_steps", "2", "--resume", state, *argv, expect=2)
    assert said in capsys.readouterr().err
