"""What counts as the best, what is written of it, and what sd-scripts' split into two parts is worth."""

import dataclasses as dc
import gc
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from hina_kohya.trainers import best, held_out, loop, splits
from hina_kohya.trainers.best import Best
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.network_args import best_options, take
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS


def test_only_a_lower_loss_is_better():
    record = Best(7)
    for loss, expected in ((2.0, (2.0, 1, 0)), (2.0, (2.0, 1, 1)), (math.nan, (2.0, 1, 2)), (1.5, (1.5, 4, 0))):
        record = record.after(loss, record.step + record.misses + 1)
        assert (record.loss, record.step, record.misses) == expected
    assert Best(7).after(math.nan, 1).loss == math.inf


def test_a_record_comes_back_from_a_state_and_from_a_file(tmp_path):
    record = dc.replace(Best(7).after(0.1 + 0.2, 30), values=12)
    record.write(tmp_path)
    assert best.of_state(tmp_path) == record
    assert best.of_state(tmp_path / "nowhere") is None
    file = tmp_path / "x-best.safetensors"
    assert best.of_file(file) is None
    save_file({"x": torch.ones(1)}, file, {best.KEY: record.text()})
    assert best.of_file(file) == record
    save_file({"x": torch.ones(1)}, file, {"ss_steps": "3"})
    assert best.of_file(file) is None
    file.write_bytes(b"half")
    assert best.of_file(file) is None


@pytest.mark.parametrize("text", ["{", "{}", '{"seed": 1}', "[]", '{"seed": "x", "run": 1, "loss": 1}'])
def test_a_damaged_record_is_said(tmp_path, text):
    (tmp_path / best.FILE).write_text(text)
    with pytest.raises(UserError, match=r"hina_best\.json is damaged .*take an older state, or remove this file"):
        best.of_state(tmp_path)


def test_options():
    assert not best_options(None)
    assert not best_options(["algo=lokr", "keep_best=false", "stop_after=0"])
    assert str(best_options(["keep_best=True", "stop_after=5"])) == "keep_best=true stop_after=5"
    assert take({"keep_best": "true", "stop_after": "5", "algo": "lokr"})[1] == {"algo": "lokr"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("keep_best=yes", "keep_best='yes' must be true or false; write keep_best=true"),
        ("keep_best=", "keep_best='' must be true or false"),
        ("stop_after=-1", "stop_after='-1' must be a whole number of validations"),
        ("stop_after=2.5", "at least 1, or 0: never; write stop_after=5"),
        ("stop_after=soon", "stop_after='soon'"),
    ],
)
def test_a_value_that_is_none_is_refused(word, message):
    name, _, value = word.partition("=")
    for read in (lambda: best_options([word]), lambda: take({name: value})):
        with pytest.raises(UserError, match=message):
            read()


class Group:
    def __init__(self, keys, seed=1):
        self.image_data = dict.fromkeys(keys)
        self.datasets = [SimpleNamespace(validation_seed=seed, shuffle_buckets=None)]

    def __len__(self):
        return len(self.image_data)


@pytest.mark.parametrize(
    ("training", "held", "seed", "message"),
    [
        (range(8), None, None, "there are none: give --validation_split 0.1 --validation_seed 42"),
        (range(8), [], 1, "there are none"),
        (
            range(8),
            [7, 8],
            None,
            "1 of the 2 held-out images are trained on, too: without a seed .*--validation_seed 42",
        ),
        (range(4), range(4), 1, "4 of the 4 .* splits no dataset of a metadata file"),
        (range(14), [13, 14], 1, r"1 of the 2 .* it rounds both parts up; give --validation_split 0.1334 for 2 of 15"),
    ],
)
def test_parts_that_are_not_apart_are_refused(training, held, seed, message):
    with pytest.raises(UserError, match=message):
        splits.check(Group(training), held if held is None else Group(held, seed), "keep_best=true")
    splits.check(Group(range(8)), Group([8, 9]), "keep_best=true")


@pytest.mark.parametrize("total", range(2, 120))
def test_the_share_that_is_proposed_splits_every_image_once(total):
    """By sd-scripts' own arithmetic (split_train_val)."""
    for held in range(1, total // 2 + 1):
        share = splits.share(held, total)
        assert round(total * share) == held
        assert math.ceil(total * (1 - share)) == total - held


def test_the_order_of_held_out_images_stays():
    held = Group([8, 9])
    splits.hold(held)
    assert held.datasets[0].shuffle_buckets is splits.stay
    assert splits.stay() is None


def train(numbers, act):
    """As a trainer's: `accelerator` is a local variable of it, and `range` is looked up in its module."""
    accelerator, model, done = object(), object(), []
    loop.begin()
    for epoch in range(numbers):
        done.append(epoch)
        act(epoch)
    return accelerator, model, done


def test_a_loop_ends_where_it_is_told_to_and_other_ranges_do_not():
    args = SimpleNamespace(max_train_steps=100)
    elsewhere = []

    def act(epoch):
        if epoch == 2:
            loop.end(args, 17)
        elsewhere.append(list(range(3)))

    try:
        assert train(6, act)[2] == [0, 1, 2]
        assert args.max_train_steps == 17
        assert elsewhere == [[0, 1, 2]] * 3
        assert train(2, lambda epoch: None)[2] == [0, 1]  # the next run in this process is not over
        assert train(2, lambda epoch: loop.read("accelerator", "epoch", "gone"))[2] == [0, 1]
    finally:
        loop.release()
    assert "range" not in globals()


def test_local_variables_of_the_loop_are_read_and_not_kept():
    def act(epoch):
        found = loop.read("numbers", "epoch", "gone")
        assert found == {"numbers": 2, "epoch": epoch}

    try:
        train(2, act)
    finally:
        loop.release()
    with pytest.raises(UserError, match="does not know the loop of this trainer"):
        loop.read("args")


@pytest.mark.slow
def test_a_model_that_the_trainer_deletes_is_gone():
    def train():
        accelerator, model = object(), Group([1])
        seen = weakref.ref(model)
        assert loop.read("accelerator") == {"accelerator": accelerator}
        del model
        gc.collect()
        return seen()

    assert train() is None


def test_a_validation_is_judged_before_the_optimizer_trains_again(monkeypatch):
    """Schedule-free optimizers swap the weights there."""
    events = []
    judge = SimpleNamespace(validated=lambda: events.append("judged"), losses=[])
    monkeypatch.setattr(held_out, "of_sd_scripts", lambda options: judge)
    settings = SimpleNamespace(network_args=["keep_best=true"])
    modes = (lambda: events.append("train"), lambda: events.append("eval"))
    try:
        train, evaluate = held_out.get_modes(lambda *args: modes, None, ("optimizer", settings), {})
        evaluate()
        held_out.batch_loss(lambda **kwargs: torch.tensor(1.0), None, (), {"is_train": False})
        held_out.batch_loss(lambda **kwargs: torch.tensor(2.0), None, (), {"is_train": True})
        held_out.batch_loss(lambda *args: torch.tensor(3.0), None, (*[None] * 12, False), {})
        train()
        assert (events, judge.losses) == (["eval", "judged", "train"], [1.0, 3.0])
        assert held_out.get_modes(lambda *args: modes, None, ("optimizer", SimpleNamespace()), {}) == modes
    finally:
        held_out.release()


def test_a_release_without_a_validation_is_refused():
    settings = SimpleNamespace(network_args=["stop_after=3"])
    with pytest.raises(
        UserError, match=r"stop_after=3 needs a validation, and this release has none .* take sd-scripts 0.10"
    ):
        held_out.require(SD_SCRIPTS, settings)
    with pytest.raises(UserError, match=r"take musubi-tuner 0\.3 or newer, or remove it"):
        held_out.require(MUSUBI, settings)
    held_out.require(SD_SCRIPTS, SimpleNamespace(network_args=["log_every=3"]))
