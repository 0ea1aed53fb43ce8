"""benchmarks.best_checkpoint: who is held out, what each way chooses, which stops are false, and the table."""

import itertools
import json

import pytest
import torch

from benchmarks import measure
from benchmarks.best_checkpoint import __main__ as command
from benchmarks.best_checkpoint import plan, runs
from benchmarks.best_checkpoint.report import markdown, rows
from benchmarks.best_checkpoint.ways import HINDSIGHT, LAST, WAYS, Way, choices, choose, stop
from hina_kohya.trainers.best import Best

LABELS = torch.tensor([8] * 6 + [9] * 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_folds_are_apart_and_have_both_digits(seed):
    order = runs.in_turn(LABELS, seed)
    folds = [runs.held_out(f"fold{number}", order) for number in range(plan.FOLDS)]
    assert sorted(itertools.chain(*folds)) == list(range(12))
    assert all(len(fold) == 3 and len(set(LABELS[fold].tolist())) == 2 for fold in folds)
    assert runs.held_out("all", order) == []
    assert runs.held_out("tenth", order) == order[:1]
    assert order != runs.in_turn(LABELS, seed + 10)


def test_no_image_is_lost_where_digits_are_not_equal():
    order = runs.in_turn(torch.tensor([8] * 7 + [9] * 4), 0)
    assert sorted(order) == list(range(11))


def test_each_image_meets_its_timesteps_and_the_same_noise():
    pixels = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    batch, again = (runs.at(pixels, LABELS[4:7], [(1, 2), (3,), (4, 5)], seed=3) for _ in range(2))
    assert batch.timesteps.tolist() == [1, 2, 3, 4, 5]
    assert batch.pixels[:, 0, 0, 0].tolist() == [0, 0, 1, 2, 2]
    assert [words.rsplit(" ", 1)[1] for words in batch.captions] == ["eight"] * 3 + ["nine"] * 2
    assert torch.equal(batch.noise, again.noise)


@pytest.mark.parametrize("losses", [[5, 4, 3, 2, 1], [3, 1, 2, 2, 2, 2, 2, 0], [1, 2, 3, 4, 5, 6, 7], [2, 2, 2, 1, 3]])
def test_a_stop_is_that_of_the_hooks(losses):
    best, steps = Best(0), None
    for place, loss in enumerate(losses):
        best = best.after(loss, place)
        if best.misses >= plan.STOP_AFTER:
            steps = place
            break
    assert stop(losses) == (best.step, steps)


def record(part, chooses, judges=None, steps=80):
    at = list(range(20, steps + 1, 20))
    found = {"images": 12, "part": part, "seed": 1, "steps": steps, "at": at}
    return found | {"trained_on": 12, "chooses": chooses, "cpu_seconds": 60} | ({"judges": judges} if judges else {})


PARTS = {
    "all": record("all", [4, 3, 2, 1], [1.0, 0.8, 0.9, 1.0]),
    "tenth": record("tenth", [3, 2, 1, 2], [1.1, 1.0, 0.9, 1.2]),
    "fold0": record("fold0", [3, 1, 2, 3], [1.2, 1.1, 1.3, 1.4]),
    **{f"fold{number}": record(f"fold{number}", [3, 2, 2], steps=60) for number in (1, 2, 3)},
}


def test_what_each_way_chooses_and_costs():
    found = {choice.way.name: (choice.step, choice.trained, choice.trainings) for choice in choices(PARTS)}
    assert list(found.values()) == [
        (80, 80, 1), (80, 80, 1), (60, 80, 1), (40, 80, 1), (60, 140, 2), (40, 120, 2), (40, 300, 5), (80, 80, 1),
    ]  # fmt: skip
    assert list(found) == [way.name for way in WAYS]
    assert len(choices({"all": PARTS["all"], "tenth": PARTS["tenth"]})) == 5


def test_false_stops():
    """By the loss of images that the way does not know, after the stop and by more than the noise."""
    way = Way("", ("all",))
    looks = [1, 2, 2, 2, 2, 2, 2, 2]

    def missed(judges):
        return choose(way, {"all": record("all", looks, judges, steps=160)})

    assert missed([1.0] * 7 + [0.9]).missed == pytest.approx(0.1)
    assert missed([1.0] * 7 + [0.9]).is_false_stop
    assert not missed([1.0] * 7 + [0.996]).is_false_stop
    before = missed([1.0, 0.5] + [1.0] * 6)  # it fell before the stop: to have kept another step is no false stop
    assert (before.stopped, before.missed) == (120, 0)
    assert choose(way, {"all": record("all", [1, 2], [1.0, 0.5], steps=40)}).stopped is None


def test_the_table():
    found = {row["way"]: row for row in rows({1: PARTS, 2: PARTS}, lambda record, place: 0.5)}
    assert list(found)[:2] == [LAST, HINDSIGHT]
    assert found[HINDSIGHT]["step"] == "40 (40 to 40)"
    assert found[HINDSIGHT]["last"] == "-20.00 ± 0.00 %"
    assert found["a tenth held out, `keep_best`"]["best"] == "+12.50 ± 0.00 %"
    assert found["a quarter held out, `keep_best`"]["wins"] == "0 of 2"
    assert found[LAST]["drawn"] == "50.0 ± 0.0 %"


@pytest.mark.slow
def test_a_short_run_and_its_report(tmp_path, monkeypatch):
    """Two steps of each part, then the results, from the command line."""
    monkeypatch.setattr(plan, "STEPS", {12: 2})
    monkeypatch.setattr(runs, "EVERY", 1)
    monkeypatch.setattr(runs, "WORDS", f"{runs.WORDS} --lr_warmup_steps 0")
    monkeypatch.setattr("benchmarks.best_checkpoint.drawing.COUNT", 2)
    words = ["", "--seeds", "1", "--runs", str(tmp_path), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    command.main()
    content = json.loads((tmp_path / "best_checkpoint.json").read_text())
    assert {run["part"]: run["trained_on"] for run in content["runs"]} == {
        "all": 12, "tenth": 11, "fold0": 9, "fold1": 9, "fold2": 9, "fold3": 9,
    }  # fmt: skip
    text = (tmp_path / "best_checkpoint.md").read_text()
    assert "## 12 images, 2 steps, 1 seeds" in text
    monkeypatch.setattr("sys.argv", [*words, "--report"])
    command.main()
    assert (tmp_path / "best_checkpoint.md").read_text().split("##")[1:] == text.split("##")[1:]


def test_the_tables_are_of_the_numbers():
    file = measure.RESULTS / "best_checkpoint.json"
    content = json.loads(file.read_text(encoding="utf-8"))

    def drawn(record, place):
        return content["drawn"][f"{plan.Run.of(record).key}@{record['at'][place]}"]

    groups = command.groups(content["runs"], tuple(content["seeds"]))
    assert file.with_suffix(".md").read_text() == markdown(groups, drawn, content["environment"]).rstrip() + "\n"
