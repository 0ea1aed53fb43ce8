"""Event files as they are: long, with NaN, of epochs, resumed, cut off, damaged."""

import math
import shutil

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from hina_kohya.watch import events
from tests.support import run_folders as runs


def read(folder):
    found, problems = events.sessions([folder])
    return found, problems


def only(folder):
    found, problems = read(folder)
    assert not problems
    [session] = found
    return session


@pytest.mark.slow
def test_every_point_is_there(tmp_path):
    """EventAccumulator keeps 10,000 of a tag, by chance."""
    runs.log(tmp_path, steps=12_000, held_out=None)
    loss = only(tmp_path).curves["loss/current"]
    assert np.array_equal(loss.steps, np.arange(1, 12_001))
    assert loss.values == pytest.approx([runs.falling(step) for step in range(1, 12_001)], rel=1e-6)
    assert loss.times == pytest.approx(runs.START + runs.STEP * loss.steps)


def test_values_of_one_step_are_its_accumulated_batches(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    for value in (0.25, 0.75):
        writer.add_scalar("loss/current", value, 1)
        writer.add_scalar("lr/unet", value, 1)
    writer.close()
    curves = only(tmp_path).curves
    assert curves["loss/current"].values.tolist() == [0.5]
    assert curves["lr/unet"].values.tolist() == [0.75]


def test_both_ways_of_tensorboard_to_write_a_scalar(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    writer.add_scalar("loss/current", 0.5, 1)
    writer.add_scalar("loss/average", 0.25, 1, new_style=True)
    writer.add_scalar("precise", 1 / 3, 1, new_style=True, double_precision=True)
    writer.add_text("args", "<script>", 1)
    writer.add_histogram("weights", np.arange(9.0), 1)
    writer.close()
    curves = only(tmp_path).curves
    assert {tag: curve.values.tolist() for tag, curve in curves.items()} == {
        "loss/current": [0.5],
        "loss/average": [0.25],
        "precise": [1 / 3],
    }


def test_epochs_are_placed_at_their_last_step(tmp_path):
    place = runs.log(tmp_path, steps=36, held_out=None)
    runs.by_epoch(place, [0.3, 0.2, 0.25], 12)
    curve = only(tmp_path).curves["loss/validation/epoch_average"]
    assert curve.steps.tolist() == [12, 24, 36]
    assert curve.values == pytest.approx([0.3, 0.2, 0.25])


def test_without_a_loss_epochs_stay_epochs(tmp_path):
    runs.by_epoch(tmp_path, [0.3, 0.2], 12)
    assert only(tmp_path).curves["loss/validation/epoch_average"].steps.tolist() == [1, 2]


def test_what_is_not_finite_stays(tmp_path):
    runs.log(tmp_path, steps=6, loss=lambda step: math.nan if step > 4 else math.inf if step == 2 else 1.0)
    loss = only(tmp_path).curves["loss/current"]
    assert np.isnan(loss.values).tolist() == [False] * 4 + [True] * 2
    assert loss.finite().steps.tolist() == [1, 3, 4]


def the_file(place):
    [file] = place.glob("events.*")
    return file


def test_a_file_that_is_cut_off_shows_what_it_has(tmp_path):
    file = the_file(runs.log(tmp_path, steps=50, held_out=None))
    file.write_bytes(file.read_bytes()[:-3])
    [session], problems = read(tmp_path)
    assert not problems
    assert len(session.curves["loss/current"]) == 50
    assert len(session.curves["lr/unet"]) == 49
    [line] = session.problems
    assert str(file) in line
    assert "ends within a record" in line


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_damage_in_the_middle_is_said_with_the_file(tmp_path, share):
    file = the_file(runs.log(tmp_path, steps=100, held_out=None))
    content = bytearray(file.read_bytes())
    # A value of a record, and not the length of one: its checksum no longer fits.
    place = content.index(b"loss/current", int(share * len(content))) + 13
    content[place] ^= 0xFF
    file.write_bytes(content)
    [session], _ = read(tmp_path)
    [line] = session.problems
    assert str(file) in line
    assert "is damaged after" in line
    assert len(session.curves["loss/current"]) == pytest.approx(100 * share, abs=4)


@pytest.mark.parametrize("content", [b"no events", b"\x18" + b"\0" * 11 + b"x" * 40, b"\xff" * 500])
def test_a_file_that_is_none_is_named(tmp_path, content):
    file = tmp_path / "events.out.tfevents.1.host.1.0"
    file.write_bytes(content)
    found, [line] = read(tmp_path)
    assert not found
    assert line.startswith(f"{file} is damaged")


def test_an_empty_file_is_a_start_without_a_step(tmp_path):
    (tmp_path / "events.out.tfevents.1.host.1.0").touch()
    assert read(tmp_path) == ([], [])


def test_a_resumed_run_is_one_curve(tmp_path):
    """The second start repeats the steps after the last saved state; they are its own."""
    runs.log(tmp_path, steps=60, loss=lambda step: 1.0, held_out=None)
    runs.log(tmp_path, steps=100, first=51, loss=lambda step: 2.0, held_out=None, start=runs.START + 3600)
    found, _ = read(tmp_path)
    chain = events.choose(found, runs.START + 3600, None)
    loss = events.joined(chain)["loss/current"]
    assert loss.steps.tolist() == list(range(1, 101))
    assert loss.values.tolist() == [1.0] * 50 + [2.0] * 50


def test_another_run_is_not_mixed_in(tmp_path):
    for number in range(3):
        runs.log(tmp_path, steps=10, start=runs.START + 3600 * number, loss=lambda step, n=number: float(n))
    found, _ = read(tmp_path)

    def loss(started, finished=None):
        return [float(each.curves["loss/current"].values[0]) for each in events.choose(found, started, finished)]

    assert loss(None) == [2.0]
    assert loss(runs.START + 3600, runs.START + 3700) == [1.0]
    assert loss(runs.START - 7200, runs.START - 3600) == []
    assert loss(runs.START + 99999) == []


def test_a_gap_of_steps_is_not_bridged(tmp_path):
    runs.log(tmp_path, steps=20, held_out=None)
    runs.log(tmp_path, steps=100, first=51, held_out=None, start=runs.START + 3600)
    found, _ = read(tmp_path)
    assert len(events.choose(found, None, None)) == 1


def test_a_run_from_its_first_step_was_not_resumed(tmp_path):
    """With accumulation the first batches of sd-scripts are those of step 0."""
    runs.log(tmp_path, steps=50, first=0, held_out=None)
    runs.log(tmp_path, steps=50, first=1, held_out=None, start=runs.START + 3600)
    found, _ = read(tmp_path)
    assert len(events.choose(found, None, None)) == 1


def test_a_copy_of_the_folder_below_another_is_read_once(tmp_path):
    place = runs.log(tmp_path / "logs", steps=5)
    found, _ = events.sessions([tmp_path, tmp_path / "logs", place])
    assert len(found) == 1
    shutil.rmtree(place)
    assert read(tmp_path) == ([], [])
