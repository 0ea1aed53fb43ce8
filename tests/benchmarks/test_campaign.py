"""What every campaign has in common: small results, from which tables and pictures come again."""

import json
import re

import pytest

from benchmarks import measure
from benchmarks.adlrns.__main__ import CAMPAIGN as ADLRNS
from benchmarks.campaign.costs import Costs
from benchmarks.campaign.plan import Plan, best_rate, there_is
from benchmarks.campaign.runner import describe
from benchmarks.convergence import summary
from benchmarks.convergence.__main__ import CAMPAIGN as CONVERGENCE
from benchmarks.convergence.runs import PROTOCOL, Run
from benchmarks.convergence.store import Store
from benchmarks.pretrained.__main__ import CAMPAIGN as PRETRAINED
from benchmarks.resize.__main__ import CAMPAIGN as RESIZE


@pytest.mark.parametrize("campaign", [CONVERGENCE, PRETRAINED, ADLRNS, RESIZE], ids=lambda campaign: campaign.name)
def test_the_tables_in_the_repository_are_those_of_the_numbers_beside_them(campaign):
    name = f"{campaign.name}_full"
    content = json.loads((measure.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    text = (measure.RESULTS / f"{name}.md").read_text(encoding="utf-8")
    drawn = re.findall(r"!\[.*\]\((.*)\)", text)
    assert {file.name for file in measure.RESULTS.glob(f"{name}_*.png")} == set(drawn)
    found = campaign.restored(content)
    assert campaign.markdown(found, content["environment"], content["command"], drawn) == text.rstrip()


def test_another_loss_is_another_table():
    content = json.loads((measure.RESULTS / "convergence_full.json").read_text(encoding="utf-8"))
    before = CONVERGENCE.markdown(summary.restored(content), content["environment"], "", [])
    losses = content["workloads"]["digits-full"]["torch-adamw"]["losses"]
    losses["400"] = [2 * loss for loss in losses["400"]]
    assert CONVERGENCE.markdown(summary.restored(content), content["environment"], "", []) != before


def test_results_are_small():
    """A row of numbers is a line or two, and what can be had from other numbers is not there."""
    for file in measure.RESULTS.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert measure.compact(json.loads(text)) == text.rstrip(), file.name
        assert len(text) < 48_000, f"{file.name}: keep what its tables need"


class Two(Plan):
    """Two runs of one world, whose short run is measured; and one that is guessed."""

    def __init__(self):
        self.mode, self.skipped = None, {"c": "it is not here"}
        self.runs = [Run("w", "a", 0.1, 100, 0, "x"), Run("w", "b", 0.2, 100, 0, "x"), Run("v", "a", 0.1, 10, 0, "x")]

    def known(self, store):
        return self.runs

    def everything(self):
        return self.runs

    def place(self, run):
        return {"world": run.workload}

    def code(self, run):
        return "new" if run.optimizer == "a" else None

    def taste(self, run):
        return Run("w", run.optimizer, 0.1, 5, 0, "x") if run.workload == "w" else None

    def alike(self, taste):
        return taste.workload


def record(run, seconds=0.0, step_ms=0.0, **more):
    return {**run.__dict__, "seconds": seconds, "step_ms": step_ms, "protocol": PROTOCOL, "loss": 1.0, **more}


def test_costs_are_the_least_time_around_and_the_steps(tmp_path, capsys):
    plan, runs = Two(), Store(tmp_path / "runs.jsonl")
    costs = Costs(plan, Store(tmp_path / "costs.jsonl"))
    assert [taste.optimizer for taste in costs.tastes] == ["a", "b"]
    for taste, seconds, ms in zip(costs.tastes, (4.0, 1.0), (100.0, 20.0), strict=True):
        costs.store.add(record(taste, seconds, ms))
    a, b, guessed = plan.runs
    assert costs.seconds(a) == pytest.approx(0.9 + 10.0)  # the first of a process also loads libraries
    assert costs.seconds(b) == pytest.approx(0.9 + 2.0)
    assert costs.seconds(guessed) == 10.0
    assert costs.minutes(plan.runs, 2) == pytest.approx((10.9 + 2.9 + 10.0) / 120)
    runs.add(record(a))
    describe(plan, costs, runs, 2)
    said = capsys.readouterr().out
    assert "skipped: c: it is not here" in said
    assert "3 runs, 1 of them done; all of them take about 0 minutes" in said
    assert "| w | 2 | 100 |" in said


def test_stale_and_complete(tmp_path):
    plan, runs = Two(), Store(tmp_path / "runs.jsonl")
    for run in plan.runs:
        assert not plan.complete(runs)
        runs.add(record(run, code="old"))
    assert plan.complete(runs)
    assert plan.stale(runs) == {run.key for run in plan.runs if run.optimizer == "a"}


def test_the_best_rate_is_the_least_bad_in_the_mean_once_all_are_done(tmp_path):
    runs, store = [Run("w", "a", lr, 1, seed, "x") for lr in (0.1, 0.2) for seed in (0, 1)], Store(tmp_path / "r.jsonl")
    for run, loss in zip(runs, (1.0, 9.0, 4.0, 4.0), strict=True):
        assert best_rate(runs, store, lambda each: each["loss"]) is None
        store.add(record(run, loss=loss))
    assert best_rate(runs, store, lambda each: each["loss"]) == 0.2


def test_a_name_that_does_not_exist_is_said_with_those_that_do():
    there_is(None, ["a", "b"])
    there_is(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="there is no 'c'; there are a, b"):
        there_is(["a", "c"], ["a", "b"])
