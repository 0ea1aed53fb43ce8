"""keep_best and stop_after in whole trainings: which file is kept, when a run ends, what a resume knows."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from hina_kohya.trainers import held_out
from tests.support.inside import DOUBLE, HARMLESS

ROOT = Path(__file__).parents[2]
SPLIT = ("--validation_split", "0.5", "--validation_seed", "1")
EVERY = (*SPLIT, "--validate_every_n_steps", "1")
TOO_HIGH = "1"  # a learning rate at which the held-out loss rises at once


def train(trainer, *words, extra=EVERY, **fields):
    return trainer.train(
        network="hina_kohya.network", network_args=("inner=networks.lora", "log_every=0", *words), extra=extra,
        **{"optimizer": "AdamW", **fields},
    )  # fmt: skip


def kept(folder):
    """(record, metadata) of a best file."""
    with safe_open(folder / "lora-best.safetensors", "pt") as file:
        return json.loads(file.metadata()["hina_best"]), file.metadata()


def bits(path):
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.old_layout_too
def test_the_best_adapter_is_kept_beside_the_last(trainer):
    report = train(trainer, "keep_best=true", steps=6, lr=TOO_HIGH)
    losses = report.scalars["loss/held_out"]
    record, metadata = kept(report.out)
    assert len(losses) == 6
    assert record["loss"] == pytest.approx(min(losses))
    assert record["step"] == int(metadata["ss_steps"]) == losses.index(min(losses)) + 1 < 6
    lowest = [value for place, value in enumerate(losses) if value < min(losses[:place], default=9e9)]
    assert report.scalars["loss/best"] == lowest
    best, shorter = report.out / "lora-best.safetensors", train(trainer, steps=record["step"], lr=TOO_HIGH)
    assert bits(best) == shorter.bits != report.bits
    assert metadata["ss_network_module"] == report.meta["ss_network_module"]
    assert "hina_best" not in report.meta


@pytest.mark.slow
def test_a_validation_of_the_same_weights_is_the_same_in_every_epoch(trainer):
    report = train(trainer, "stop_after=9", extra=SPLIT, steps=30, lr="1e-30")
    losses = report.scalars["loss/held_out"]
    assert len(losses) >= 3
    assert len(set(losses)) == 1


@pytest.mark.slow
@pytest.mark.old_layout_too
@pytest.mark.parametrize("extra", [EVERY, SPLIT])
def test_a_run_that_does_not_improve_ends_as_one_that_is_over(trainer, extra):
    report = train(trainer, "stop_after=2", extra=(*extra, "--save_state"), steps=60, lr=TOO_HIGH)
    losses = report.scalars["loss/held_out"]
    assert losses.index(min(losses)) == len(losses) - 3
    stopped = int(report.meta["ss_steps"])
    assert stopped == len(report.losses) < 60
    if trainer.name == "double":  # sd-scripts' own log breaks lines, and names a file in each
        assert f"training ends at step {stopped}: in 2 validations the held-out loss was not below" in report.log
    state = json.loads((report.out / "lora-state" / "hina_best.json").read_text())
    assert (state["misses"], state["loss"]) == (2, pytest.approx(min(losses)))
    assert not (report.out / "lora-best.safetensors").exists()


@pytest.mark.slow
def test_a_resume_knows_the_best_and_how_long_ago_it_was(trainer):
    if trainer.name != "double":
        pytest.skip("the harness wants a folder of its own for each run; tests/trainers resumes the real thing")
    ours = {"optimizer": "HinaAdamW", "optimizer_args": ("override_hyperparameters=true",)}  # a new rate holds
    first = train(trainer, "keep_best=true", extra=(*EVERY, "--save_state"), steps=3, **ours)
    best = first.out / "lora-best.safetensors"
    assert kept(first.out)[0]["step"] == 3
    words = (*EVERY, "--resume", str(first.out / "lora-state"), "--output_dir", str(first.out))
    before = best.read_bytes()
    worse = train(trainer, "keep_best=true", "stop_after=2", extra=words, steps=8, lr=TOO_HIGH, **ours)
    assert "in 2 validations the held-out loss was not below" in worse.log
    assert best.read_bytes() == before
    loss = kept(first.out)[0]["loss"]
    train(trainer, "keep_best=true", extra=words, steps=6, **ours)
    assert kept(first.out)[0]["loss"] < loss
    before = best.read_bytes()
    train(trainer, "keep_best=true", extra=words, steps=4, **ours)  # lower than the state's, not than the file's
    assert best.read_bytes() == before
    other = ("--validation_split", "0.5", "--validation_seed", "2")
    refused = train(trainer, "keep_best=true", extra=(*other, *words[len(EVERY) :]), rc=1, **ours)
    assert "give --validation_seed 1" in refused.log


@pytest.mark.slow
@pytest.mark.old_layout_too
def test_images_that_are_not_held_out_are_refused(trainer):
    report = train(trainer, "keep_best=true", extra=(), rc=1)
    assert "keep_best=true needs images that are held out, and there are none: give --validation_split" in report.log
    report = train(trainer, "stop_after=3", extra=("--validation_split", "0.5"), rc=1)
    assert "held-out images are trained on, too: without a seed" in report.log


@pytest.mark.slow
def test_nothing_is_kept_unasked(trainer):
    report = train(trainer, extra=EVERY, steps=2)
    assert "loss/held_out" not in report.scalars
    assert not list(report.out.glob("*best*"))


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_the_best_before_whole(trainer, monkeypatch):
    if trainer.name != "double":
        pytest.skip("the disk is made full in this process")
    whole, writes = held_out._Whole.save_weights, []

    def full_the_second_time(self, *args):
        writes.append(args[0])
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if len(writes) != 2 else 3000, before[1]))
        try:
            whole(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(held_out._Whole, "save_weights", full_the_second_time)
    report = train(trainer, "keep_best=true", "stop_after=5", steps=2)
    record, metadata = kept(report.out)
    assert record["step"] == int(metadata["ss_steps"]) == 1
    assert "the best adapter so far, of step 2, could not be written" in report.log
    assert report.scalars["loss/held_out"][1] < record["loss"] == pytest.approx(report.scalars["loss/best"][0])
    assert len(report.scalars["loss/best"]) == 1
    assert not list(report.out.glob(".*"))
    bits(report.out / "lora-best.safetensors")


@pytest.mark.slow
def test_killed_while_the_best_is_written(tmp_path):
    words = ["--network_module", "hina_kohya.network", "--network_args", "inner=networks.lora", "keep_best=true"]
    words += ["--output_dir", str(tmp_path), "--max_train_steps", "9", "--learning_rate", "1e-3", *EVERY]
    code = f"""
import runpy, signal, sys
import safetensors.torch
true, count = safetensors.torch.save_file, 0
def half(tensors, path, metadata=None):
    global count
    count += 1
    true(tensors, path, metadata)
    if count == 3:
        content = open(path, "rb").read()
        open(path, "wb").write(content[: len(content) // 2])
        print("half", flush=True)
        signal.pause()
safetensors.torch.save_file = half
sys.path.insert(0, {str(DOUBLE)!r})
sys.argv = ["train_network.py", *{words!r}]
runpy.run_path({str(DOUBLE / "train_network.py")!r}, run_name="__main__")
"""
    environment = os.environ | HARMLESS | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as child:
        assert child.stdout
        assert "half\n" in iter(child.stdout.readline, "")
        child.send_signal(signal.SIGKILL)
    assert kept(tmp_path)[0]["step"] == 2
    assert bits(tmp_path / "lora-best.safetensors")
    assert [path.name[0] for path in tmp_path.iterdir() if path.suffix == ".safetensors"].count(".") == 1
