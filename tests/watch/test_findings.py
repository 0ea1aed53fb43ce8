"""Warnings: each where it is due, and none where the numbers say nothing."""

import math

import numpy as np
import pytest
import torch

from hina_kohya.watch import run
from hina_kohya.watch.findings import findings
from tests.support import run_folders as runs


def said(folder, **request):
    return [finding.text for finding in findings(run.read(run.Request(folder, **request)))]


def logged(folder, **arguments):
    runs.log(folder / "logs", **arguments)
    return said(folder)


def test_overfitting_since_a_step_and_the_file_to_take(cat):
    first, second, *rest = said(cat)
    assert first == (
        "The held-out loss rises since step 40, from 0.1101 to 0.1353, while the training loss does not: "
        "it overfits since then."
    )
    assert second == (
        "The held-out loss is lowest at step 40: 0.11. "
        "The nearest saved file is cat-step00000040.safetensors of step 40."
    )
    assert not rest


def test_each_validation_by_itself_counts_for_more_than_the_trainers_average(tmp_path):
    """Of keep_best=true: the trainer's average of the first epoch is flat and late."""
    runs.log(tmp_path / "logs", every=1, more=lambda s: {} if s % 10 else {"loss/held_out": runs.turning(s, turn=30)})
    runs.adapter(tmp_path / "cat.safetensors")
    runs.adapter(tmp_path / "cat-best.safetensors", step=30)
    lines = said(tmp_path)
    assert "The held-out loss rises since step 30" in lines[0]
    nearest = "The nearest saved file is cat-best.safetensors of step 30."
    assert lines[1] == f"The held-out loss is lowest at step 30: 0.11. {nearest}"
    found = run.read(run.Request(tmp_path))
    assert found.adapter.path.name == "cat.safetensors"
    assert {each.name for each in found.saved} == {"cat"}


def test_a_best_file_without_metadata_is_of_its_run(tmp_path):
    runs.adapter(tmp_path / "dog.safetensors", ss_output_name="")
    runs.adapter(tmp_path / "dog-best.safetensors", step=30, ss_output_name="")
    assert {each.name for each in run.read(run.Request(tmp_path)).saved} == {"dog"}


@pytest.mark.parametrize(("seed", "leaks"), [("None", True), ("42", False)])
def test_held_out_images_that_were_trained_on(tmp_path, seed, leaks):
    runs.log(tmp_path / "logs")
    runs.adapter(tmp_path / "cat.safetensors", ss_validation_split="0.1", ss_validation_seed=seed)
    assert any("Most of the held-out images were trained on, too" in line for line in said(tmp_path)) == leaks


def test_epochs_count_as_well(tmp_path):
    place = runs.log(tmp_path, steps=120, held_out=None)
    runs.by_epoch(place, [runs.turning(12 * number) for number in range(1, 11)], 12)
    assert "rises since step 36" in said(tmp_path)[0]


def test_where_the_training_loss_rises_as_well_it_diverges(tmp_path):
    lines = logged(tmp_path, steps=200, loss=lambda s: runs.falling(s) + 1e-3 * max(0, s - 40))
    assert "so does the training loss: it diverges" in lines[0]
    assert any(line.startswith("The training loss rose by") for line in lines)
    assert not any("overfits" in line for line in lines)


def test_a_loss_that_falls_is_good_and_one_that_still_falls_wants_more(tmp_path):
    settled = logged(tmp_path / "a", held_out=lambda s: 0.1 + math.exp(-s / 10))
    assert settled[0].startswith("The held-out loss fell from ")
    assert "still falls" not in settled[0]
    assert "still falls: more steps may help" in logged(tmp_path / "b", held_out=lambda s: 0.5 - 0.001 * s)[0]


def test_flat_is_said_to_be_flat(tmp_path):
    noise = np.random.default_rng(0).normal(0.1, 0.01, 101)
    lines = logged(tmp_path, held_out=lambda s: float(noise[s]))
    assert lines[0].startswith("The held-out loss did not change by more than its noise")


@pytest.mark.parametrize("count", [6, 20, 100])
def test_noise_alone_is_called_overfitting_once_in_a_hundred(count):
    from types import SimpleNamespace

    from hina_kohya.watch.events import Curve
    from hina_kohya.watch.findings import _held_out

    alarms = 0
    for seed in range(1000):
        values = np.random.default_rng(seed).normal(0.1, 0.01, count)
        curve = Curve(np.arange(count), values, np.arange(count) * 1.0)
        pretence = SimpleNamespace(curves={"loss/validation/step_average": curve}, saved=(), metadata={}, settings={})
        alarms += any("rises" in finding.text for finding in _held_out(pretence))
    assert alarms <= 15  # 10, 9 and 3 when this was written


def test_a_change_that_is_real_and_tiny_is_no_finding(tmp_path):
    assert not any("overfits" in line for line in logged(tmp_path, held_out=lambda s: 0.1 + 1e-6 * (s - 40) ** 2 / 100))


def test_few_held_out_values_say_no_more_than_the_lowest(tmp_path):
    lines = logged(tmp_path, every=25, held_out=runs.turning)
    assert lines == ["The held-out loss is lowest at step 50: 0.1108."]


def test_nan_since_a_step(tmp_path):
    lines = logged(tmp_path, loss=lambda s: math.nan if s >= 70 else 0.1, held_out=None)
    assert lines[0].startswith("The loss is NaN or infinite since step 70: ")
    runs.adapter(tmp_path / "cat.safetensors")
    assert "a lower learning_rate than 0.0001" in said(tmp_path)[0]


def test_nan_that_passed(tmp_path):
    lines = logged(tmp_path, loss=lambda s: math.nan if s in (7, 9) else 0.1, held_out=None)
    assert lines[0].startswith("The loss was NaN or infinite at 2 steps, first at step 7, and came back")


@pytest.mark.parametrize(("text", "words"), [(0.0, "does not move at all"), (0.01, "hardly moves"), (0.1, None)])
def test_a_text_encoder_at_rest(tmp_path, text, words):
    runs.adapter(tmp_path / "cat.safetensors", text=text)
    lines = said(tmp_path)
    assert bool(lines) == bool(words)
    if words:
        assert words in lines[0]


def test_without_a_text_encoder_nothing_is_said_of_it(tmp_path):
    runs.adapter(tmp_path / "cat.safetensors", names=runs.NAMES)
    assert said(tmp_path) == []


def test_modules_that_are_zero_are_named_by_their_block(tmp_path, monkeypatch):
    real = torch.randn
    calls = iter(range(10**6))
    monkeypatch.setattr(torch, "randn", lambda *a, **k: real(*a, **k) * (next(calls) >= 2))
    runs.adapter(tmp_path / "cat.safetensors")
    assert said(tmp_path) == [f"1 of {len(runs.NAMES + runs.TEXT)} modules are still zero, in unet down_blocks 1."]


def test_an_adapter_of_zeros_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "randn", lambda *shape, **_: torch.zeros(shape))
    runs.adapter(tmp_path / "cat.safetensors")
    assert said(tmp_path) == ["Nothing in cat.safetensors differs from zero: the adapter changes nothing."]


def test_a_run_without_anything_held_out_says_nothing_of_overfitting(tmp_path):
    assert logged(tmp_path, held_out=None) == []
