"""The convergence benchmark: reading savings off curves, resuming, determinism, and the same chances for everyone."""

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.campaign import pictures
from benchmarks.campaign.driver import Bar, do, workers
from benchmarks.convergence import __main__ as command
from benchmarks.convergence import plan, plots, report, runs, summary
from benchmarks.convergence.curves import (
    Steps,
    at_equal_rates,
    geometric_mean,
    loss_at,
    monotone,
    overlap_ratio,
    profile,
    steps_to,
)
from benchmarks.convergence.optimizers import BASELINES, OPTIMIZERS, OURS
from benchmarks.convergence.runs import Run, execute
from benchmarks.convergence.store import Store
from benchmarks.convergence.task import FullBf16, Task, Workload, add_lora, generator
from benchmarks.convergence.workloads import WORKLOADS

BUDGETS = [50, 70, 100, 140]
ENV = {"machine": "m", "device": "cpu", "threads": 1, "torch": "2", "commit": "c", "date": "d", "load_average": 0.0}


class Plane(Task):
    """A rank-2 LoRA on one linear layer learns another one."""

    def __init__(self, folder: Path, seed: int):
        random = generator(0)
        layer = torch.nn.Linear(6, 5, bias=False)
        with torch.no_grad():
            layer.weight.normal_(generator=random)
        self.goal = torch.randn(5, 6, generator=random)
        self.model = torch.nn.Sequential(layer)
        self.named, self.seed = add_lora(self.model, 2, seed), seed

    def _error(self, x):
        return (self.model(x) - x @ self.goal.T).square().mean()

    def loss(self, step):
        return self._error(torch.randn(16, 6, generator=generator(self.seed, step)))

    @torch.no_grad()
    def held_out(self):
        return self._error(torch.randn(256, 6, generator=generator(9))).item()


def plane(half, **more):
    return Workload(half, 20, 0.05, "lora", Plane, lambda folder: "plane", **more)


MODE = plan.Mode(
    "tiny",
    ("one", "two"),
    ("torch-adamw", "bnb-adamw8bit", "hina-control", "default-tam"),
    trials=2,
    seeds=(2, 3),
    multiples=(0.5, 1.0, 2.0),
    confirmed=("hina-control",),
)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "one", plane(1))
    monkeypatch.setitem(WORKLOADS, "two", plane(2, bf16=True))
    return MODE


def finish(made, store, folder, work=execute, **more):
    """(whether nothing is missing, what failed)"""
    with workers(0) as pool, Bar("test", 1) as bar:
        failed = do(work, lambda: made.known(store), store, folder, pool, bar, **more)
    return all(store.get(run) for run in made.known(store)), failed


# Curves with known answers


def decaying(speed, floor=0.1):
    """What `speed` times as many steps of plain training give; log-linear between budgets, so that reading is exact."""
    return [(n, floor - math.log(n * speed)) for n in BUDGETS]


@pytest.mark.parametrize("saving", [0.0, 0.15, 0.25, -0.2])
def test_the_saving_at_equal_loss_is_the_one_that_was_put_in(saving):
    reference, faster = decaying(1.0), decaying(1 / (1 - saving))
    found = steps_to(faster, loss_at(reference, 100))
    assert found.bound == ""
    assert found.steps / 100 == pytest.approx(1 - saving)
    assert overlap_ratio(faster, reference) == pytest.approx(1 - saving)


def test_steps_outside_of_the_budgets_are_bounds_and_say_so():
    curve = decaying(1.0)
    assert steps_to(curve, curve[0][1]) == Steps(50)
    assert steps_to(curve, curve[0][1] + 1) == Steps(50, "<=")
    assert steps_to(curve, curve[-1][1] - 1e-9) == Steps(140, ">")
    assert steps_to([], 0.0).bound == ">"
    assert str(Steps(50, "<=")) == "<=50"


def test_noise_cannot_make_more_steps_look_worse():
    assert monotone([(1, 3.0), (2, 1.0), (3, 2.0), (4, 0.5)]) == [(1, 3.0), (2, 1.5), (3, 1.5), (4, 0.5)]
    assert monotone([(1, 1.0), (2, 2.0), (3, 3.0)]) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    flat = monotone([(1, 3.0), (2, 1.0), (4, 1.0)])
    assert steps_to(flat, 1.0).steps == pytest.approx(2)  # the first of a flat stretch


def test_curves_that_share_no_loss_have_no_ratio():
    assert overlap_ratio([(1, 5.0), (2, 4.0)], [(1, 3.0), (2, 2.0)]) is None


def test_means_of_bounds_say_what_is_known():
    assert geometric_mean([Steps(0.5), Steps(2.0)]) == Steps(1.0)
    assert geometric_mean([Steps(0.5, "<="), Steps(2.0)]) == Steps(1.0, "<=")
    assert geometric_mean([Steps(0.5, "<="), Steps(2.0, ">")]).bound == "~"


def test_performance_profile():
    costs = {"w1": {"a": 10.0, "b": 20.0}, "w2": {"a": 30.0, "b": 10.0}, "w3": {"a": 10.0, "b": math.inf}}
    found = profile(costs, [1.0, 2.0, 3.0])
    assert found["a"] == pytest.approx([2 / 3, 2 / 3, 1.0])
    assert found["b"] == pytest.approx([1 / 3, 2 / 3, 2 / 3])  # not reaching a target never counts


# The same chances


def test_learning_rates_are_the_same_places_for_every_optimizer():
    rates = plan.learning_rates(1.0, 6)
    assert rates[0] == 1.0
    assert plan.learning_rates(1.0, 3) == rates[:3]
    assert min(rates) >= 1 / plan.REACH
    assert max(rates) <= plan.REACH
    gaps = [math.log(b / a) for a, b in zip(sorted(rates), sorted(rates)[1:], strict=False)]
    assert max(gaps) < 2.7 * min(gaps)  # spread, not clustered
    assert plan.learning_rates(0.01, 6) == pytest.approx([0.01 * rate for rate in rates], rel=5e-3)


@pytest.mark.slow
def test_every_optimizer_gets_the_same_trials_seeds_and_budgets(tiny, tmp_path):
    made, store = plan.Plan(tiny, tmp_path), Store(tmp_path / "runs.jsonl")
    complete, failed = finish(made, store, tmp_path)
    assert complete, failed
    shapes: dict[str, set] = {"one": set(), "two": set()}
    for workload, name in made.pairs:
        centre = OPTIMIZERS[name].centre(WORKLOADS[workload].lr)
        trials = made.trials(workload, name)
        assert len({run.lr for run in trials}) == tiny.trials
        curves = made.curve(workload, name, made.chosen(workload, name, store))
        assert plan.TRIAL_SEED not in curves
        assert len(curves) == {"one": 2, "two": 3}[workload]  # to choose, to confirm
        places = tuple(round(math.log(run.lr / centre), 1) for run in trials)
        shapes[workload].add((places, *((seed, *(run.steps for run in row)) for seed, row in curves.items())))
    assert [len(each) for each in shapes.values()] == [1, 1]
    assert ("two", "default-tam") not in made.pairs  # chosen on the first half only
    assert len(store.records) == len(made.everything())


def test_modes_name_what_exists_and_each_half_has_every_reference():
    for mode in plan.MODES.values():
        for workload in mode.workloads:
            assert {"torch-adamw", "bnb-adamw8bit"} <= set(mode.entries(workload))
        assert {WORKLOADS[workload].half for workload in mode.workloads} == {1, 2}
    assert set(plan.CONFIRMED) <= set(OURS)
    for workload in plan.FULL.workloads:
        fit = {name for name in BASELINES if OPTIMIZERS[name].unfit(WORKLOADS[workload]) is None}
        all_of_them = WORKLOADS[workload].half == 2
        assert all_of_them == (fit <= set(plan.FULL.entries(workload)))
    assert not set(BASELINES) & set(OURS)
    with pytest.raises(ValueError, match="there is no 'hina-defualt'"):
        plan.narrowed(plan.FULL, None, ["hina-defualt"])


def test_what_is_not_installed_is_skipped_with_a_reason(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "absent", OPTIMIZERS["came"].__class__("no_such:Thing", needs="no-such-thing"))
    made = plan.Plan(plan.narrowed(tiny, None, ["torch-adamw", "absent"]), tmp_path)
    assert made.skipped == {"absent": "no-such-thing is not installed"}
    assert {name for _, name in made.pairs} == {"torch-adamw"}


# Determinism


def timeless(record):
    return {k: v for k, v in record.items() if k not in ("step_ms", "optimizer_ms", "seconds")}


@pytest.mark.parametrize("name", ["torch-adamw", "bnb-adamw8bit", "came", "adv-adamw", "hina-default"])
@pytest.mark.parametrize("workload", ["one", "two"])
def test_a_run_depends_on_nothing_but_its_description(name, workload, tiny, tmp_path):
    run = Run(workload, name, 0.02, 8, 3, "x")
    first = execute(run, tmp_path)
    torch.randn(17)
    execute(Run(workload, "torch-adamw", 0.5, 5, 1, "x"), tmp_path)
    assert timeless(execute(run, tmp_path)) == timeless(first)
    other = execute(Run(workload, name, 0.02, 8, 4, "x"), tmp_path)
    assert other["loss"] != first["loss"]


def test_the_control_is_torch_adamw(tiny, tmp_path):
    ours, theirs = (execute(Run("one", n, 0.02, 10, 0, "x"), tmp_path) for n in ("hina-control", "torch-adamw"))
    assert ours["loss"] == theirs["loss"]


def test_bitsandbytes_really_keeps_8_bits(tmp_path):
    task = Plane(tmp_path, 0)
    optimizer = OPTIMIZERS["bnb-adamw8bit"].build(task.named, 0.01)
    task.backward(0)
    optimizer.step()
    assert {state["state1"].dtype for state in optimizer.state.values()} == {torch.uint8}


def test_convolutions_are_shown_as_matrices_in_place():
    weight = torch.randn(4, 6, 1, 1, requires_grad=True)
    shown = runs.Matrices([("lora_down", weight)])
    weight.grad = torch.ones_like(weight)
    shown.show_gradients()
    before = weight.detach().clone()
    torch.optim.SGD([p for _, p in shown.named], lr=0.5).step()
    assert torch.equal(weight.detach(), before - 0.5)


def test_a_run_that_diverges_has_no_loss(tiny, tmp_path):
    assert execute(Run("one", "torch-adamw", 1e30, 10, 0, "x"), tmp_path)["loss"] is None


def test_the_schedule_warms_up_and_ends_near_zero():
    rates = [runs.schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] < 1e-3


def test_full_bf16_shows_the_optimizer_nothing_but_bf16(tmp_path):
    task = FullBf16(Plane(tmp_path, 0))
    task.backward(0)
    assert {p.dtype for _, p in task.named} == {p.grad.dtype for _, p in task.named} == {torch.bfloat16}
    before = task.held_out()
    with torch.no_grad():
        task.named[1][1].add_(1.0)
    assert task.held_out() != before


# Resuming


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(tiny, tmp_path):
    whole = Store(tmp_path / "whole.jsonl")
    finish(plan.Plan(tiny, tmp_path), whole, tmp_path)

    file, done = tmp_path / "runs.jsonl", []
    made, store = plan.Plan(tiny, tmp_path), Store(file)

    def work(run, folder):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(run.key)
        return execute(run, folder)

    with pytest.raises(KeyboardInterrupt):
        finish(made, store, tmp_path, work)
    file.write_bytes(file.read_bytes() + b'{"workload": "one", "optim')  # the power went off
    store = Store(file)
    assert set(store.records) == set(done)

    again = []
    noted = lambda run, folder: again.append(run.key) or execute(run, folder)
    assert finish(plan.Plan(tiny, tmp_path), store, tmp_path, noted)[0]
    assert not set(again) & set(done)
    assert len(again) == len(set(again))
    reread = Store(file).records
    assert {k: timeless(r) for k, r in reread.items()} == {k: timeless(r) for k, r in whole.records.items()}
    again.clear()
    assert finish(plan.Plan(tiny, tmp_path), store, tmp_path, noted)[0]
    assert again == []


def test_it_stops_at_the_deadline_and_says_that_it_is_not_done(tiny, tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    assert finish(plan.Plan(tiny, tmp_path), store, tmp_path, stop=lambda: True) == (False, {})
    assert not store.records


def test_a_run_that_fails_is_reported_and_tried_again_next_time(tiny, tmp_path):
    made, store = plan.Plan(plan.narrowed(tiny, ["one"], ["torch-adamw"]), tmp_path), Store(tmp_path / "runs.jsonl")
    complete, failed = finish(made, store, tmp_path, lambda run, folder: 1 / 0)
    assert not complete
    assert len(failed) == tiny.trials
    assert "ZeroDivisionError" in next(iter(failed.values()))
    assert finish(made, store, tmp_path) == (True, {})


@pytest.mark.slow
def test_runs_of_other_code_are_stale_and_other_arguments_are_other_runs(tiny, tmp_path, monkeypatch):
    made, store = plan.Plan(plan.narrowed(tiny, ["one"], ["torch-adamw", "hina-control"]), tmp_path), None
    store = Store(tmp_path / "runs.jsonl")
    finish(made, store, tmp_path)
    assert not made.stale(store)
    monkeypatch.setattr(plan, "code", lambda name: "other")
    stale = made.stale(store)
    assert len(stale) == sum(run.optimizer == "hina-control" for run in made.everything())
    assert all("hina-control" in key for key in stale)
    monkeypatch.setitem(OPTIMIZERS, "torch-adamw", OPTIMIZERS["torch-adamw"].__class__("torch.optim:AdamW"))
    changed = plan.Plan(made.mode, tmp_path)
    assert not any(store.get(run) for run in changed.trials("one", "torch-adamw"))


# Equal learning rates


def test_trials_at_equal_rates_tell_steps_whatever_rate_won():
    curve = [(steps, 3.0 - 0.4 * math.log(steps)) for steps in (50, 100, 140)]
    base = {0.001: 2.0, 0.01: 1.2, 0.03: 1.3, 0.1: 1.9, 1.0: None}
    gain = 0.4 * math.log(1 / 0.8)  # what a fifth fewer steps are worth
    better = {lr: None if loss is None else loss - gain for lr, loss in base.items()}
    assert at_equal_rates(better, base, curve, 100) == pytest.approx(0.8)
    assert at_equal_rates(base, base, curve, 100) == 1.0
    better[0.1] = 100.0  # not a neighbour of the best
    assert at_equal_rates(better, base, curve, 100) == pytest.approx(0.8)
    better[0.03] += 3 * gain
    assert at_equal_rates(better, base, curve, 100) == pytest.approx(1.0)
    assert at_equal_rates({0.02: 1.0}, base, curve, 100) is None  # other learning rates
    assert at_equal_rates({**better, 0.03: None}, base, curve, 100) is None  # diverged
    assert at_equal_rates(base, {0.01: None}, curve, 100) is None
    assert at_equal_rates(base, base, [(50, 1.0), (100, 1.0), (140, 1.0)], 100) is None  # no slope


# The report


@pytest.mark.slow
def test_the_report_is_written_from_what_is_there(tiny, tmp_path):
    made, store = plan.Plan(tiny, tmp_path), Store(tmp_path / "runs.jsonl")
    empty = summary.summarise(made, store)
    assert len(empty["unfinished"]) == len(made.pairs)
    assert pictures.save(plots.figures(empty), tmp_path / "empty") == []
    assert "Nothing is finished" in report.markdown(empty, ENV, "cmd", [])

    finish(made, store, tmp_path)
    found = summary.summarise(made, store)
    assert not found["unfinished"]
    control = found["workloads"]["one"]["hina-control"]
    assert control.against["torch-adamw"] == Steps(1.0)
    assert control.overlap["torch-adamw"] == pytest.approx(1.0)
    assert min(row.target.steps for n, row in found["workloads"]["one"].items() if n in BASELINES) <= 20
    again = summary.restored(json.loads(json.dumps(summary.kept(found), allow_nan=False)))
    assert again["profiles"] == found["profiles"]
    assert again["unfinished"] == found["unfinished"] == []
    drawn = pictures.save(plots.figures(found), tmp_path / "some")
    assert {file.name for file in tmp_path.glob("some*.png")} == set(drawn) == {"some_curves.png", "some_profiles.png"}
    text = report.markdown(found, ENV, "cmd", drawn)
    for name in tiny.optimizers:
        assert name in text


def test_a_planted_saving_comes_out_of_the_summary(tiny, tmp_path):
    """Records as if default-tam needed 20 % fewer steps."""
    tiny = plan.narrowed(tiny, ["one"], ["torch-adamw", "bnb-adamw8bit", "hina-default", "default-tam"])
    made, store = plan.Plan(tiny, tmp_path), Store(tmp_path / "runs.jsonl")
    speed = {"torch-adamw": 1.0, "bnb-adamw8bit": 0.95, "hina-default": 1.0, "default-tam": 1 / 0.8}
    while todo := [run for run in made.known(store) if not store.get(run)]:
        for run in todo:
            loss = 10 + 0.01 * run.seed - math.log(run.steps * speed[run.optimizer]) + abs(math.log(run.lr / 0.05))
            more = {"loss": loss, "step_ms": 1.0, "optimizer_ms": 0.5, "code": "", "protocol": runs.PROTOCOL}
            store.add({**run.__dict__, **more})
    found = summary.summarise(made, store)
    ours = found["workloads"]["one"]["default-tam"]
    assert ours.lr == 0.05
    assert ours.against["torch-adamw"].steps == pytest.approx(0.8)
    assert ours.against["bnb-adamw8bit"].steps == pytest.approx(0.8 * 0.95)
    assert [each.steps for each in ours.seeds_against["torch-adamw"]] == pytest.approx([0.8, 0.8])
    assert ours.target.steps == pytest.approx(16)
    assert ours.seconds_to_target == pytest.approx(16 * 0.5e-3)
    assert found["aggregate"]["default-tam"][1]["torch-adamw"]["ratio"].steps == pytest.approx(0.8)
    assert found["profiles"][1]["steps"]["default-tam"][0] == 1.0
    assert ours.equal_rates == pytest.approx(0.8)
    assert "| default-tam | 0.8 | 0.8 |" in report.markdown(found, ENV, "cmd", [])


@pytest.mark.slow
def test_results_are_drawn_again_without_runs(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(plan.MODES, "quick", tiny)
    words = ["--jobs", "0", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--name", "some"]
    assert command.main([*words, "--only", "torch-adamw", "--workloads", "one"]) == 0
    first = {file.name: file.read_bytes() for file in tmp_path.glob("some*")}
    assert set(first) == {"some.json", "some.md", "some_curves.png", "some_profiles.png"}
    for file in tmp_path.glob("some*.[mp]*"):
        file.unlink()
    assert command.main(["--redraw", "--name", "some", "--results", str(tmp_path)]) == 0
    assert {file.name: file.read_bytes() for file in tmp_path.glob("some*")}["some.md"] == first["some.md"]
    assert set(first) == {file.name for file in tmp_path.glob("some*")}
    assert command.main(["--redraw", "--name", "other", "--results", str(tmp_path)]) == 2
    assert "other.json" in capsys.readouterr().err
