"""keep_best and stop_after in musubi-tuner, which has no validation: ours, on a dataset that is not trained on."""

import json

import pytest
from safetensors import safe_open

from tests.support import cached

TOO_HIGH = "1"


@pytest.fixture
def parts(musubi, tmp_path):
    return cached.parts(tmp_path, "wan", musubi.name == "double")


def train(musubi, parts, *words, extra=(), **fields):
    return musubi.train(
        network="hina_kohya.network", network_args=("inner=networks.lora_wan", "log_every=0", *words),
        extra=("--dataset_config", parts[0], *extra), **{"optimizer": "AdamW", **fields},
    )  # fmt: skip


def test_the_best_is_kept_and_the_run_ends(musubi, parts):
    words = (f"held_out={parts[1]}", "held_out_every=1", "keep_best=true", "stop_after=3")
    rc = 0 if musubi.name == "double" else 3  # the harness's word for fewer steps than it asked for
    report = train(musubi, parts, *words, extra=("--save_state",), steps=60, lr=TOO_HIGH, rc=rc)
    losses = report.scalars["loss/held_out"]
    lowest = losses.index(min(losses))
    assert len(losses) == len(report.losses) == int(report.meta["ss_steps"]) == lowest + 4 < 60
    assert report.scalars["loss/best"] == [loss for n, loss in enumerate(losses) if loss < min(losses[:n], default=1e9)]
    with safe_open(report.out / "lora-best.safetensors", "pt") as file:
        metadata = file.metadata()
    assert int(metadata["ss_steps"]) == lowest + 1
    state = json.loads((report.out / "lora-state" / "hina_best.json").read_text())
    assert state == {**json.loads(metadata["hina_best"]), "misses": 3}
    assert state["seed"] == 42
    seed = ("--seed", "7", "--resume", str(report.out / "lora-state"))
    refused = train(musubi, parts, *words, extra=seed, rc=1)
    assert "give --seed 42" in refused.log


def test_the_same_weights_have_the_same_loss_and_training_is_the_same(musubi, parts):
    words = (f"held_out={parts[1]}", "held_out_every=2")
    still = train(musubi, parts, *words, steps=10, lr="1e-30")
    assert len(still.scalars["loss/held_out"]) == 5
    assert len(set(still.scalars["loss/held_out"])) == 1
    watched, alone = train(musubi, parts, *words), train(musubi, parts)
    assert watched.bits == alone.bits
    assert watched.losses == alone.losses
    assert len(watched.scalars["loss/held_out"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("keep_best=true",), "keep_best=true needs images that are held out: give held_out=held_out.toml"),
        (("held_out=nowhere.toml",), "held_out=nowhere.toml is no file"),
        (("held_out={0}",), "2 of its items are trained on, too, such as"),
        (("held_out={empty}",), "has no items; cache their latents"),
        (("held_out={1}", "held_out_every=0"), "held_out_every='0' must be a whole number of steps, at least 1"),
    ],
)
def test_what_is_no_held_out_dataset_is_refused(musubi, parts, tmp_path, words, message):
    empty = tmp_path / "empty.toml"
    text = (tmp_path / "held.toml").read_text()
    empty.write_text(text.replace("held_cache", "empty_cache"))
    (tmp_path / "empty_cache").mkdir()
    report = train(musubi, parts, *(word.format(*parts, empty=empty) for word in words), rc=1)
    assert message in report.log


def test_sd_scripts_holds_out_by_itself(trainer):
    report = trainer.train(network="hina_kohya.network", network_args=("inner=networks.lora", "held_out=x.toml"), rc=1)
    assert "sd-scripts holds images out by itself; give --validation_split 0.1 --validation_seed 42" in report.log
