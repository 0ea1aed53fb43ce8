"""The ADLRNS benchmark: what it counts, the same chances for every method, resuming, and reports of what is there."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adlrns import adapter, equal_bytes, layers, methods, patches, plan, plots, report, runs, steps
from benchmarks.adlrns.execution import execute
from benchmarks.adlrns.pairs import Cut, Pair
from benchmarks.adlrns.runs import Run
from benchmarks.adlrns.store import Store
from benchmarks.adlrns.summary import promises, summarise
from benchmarks.campaign import pictures
from benchmarks.campaign.costs import Costs
from benchmarks.campaign.driver import Bar, do, workers
from benchmarks.convergence.plan import TRIAL_SEED
from hina_kohya.adlrns.layer.patches import Patches
from hina_kohya.adlrns.layer.patches import network as patch_network

ENV = {"machine": "m", "device": "cpu", "threads": 1, "torch": "2", "commit": "c", "date": "d", "load_average": 0.0}
FULL_RANK = 8


def flops(call):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 2  # torch counts a multiplication and an addition


# Layer and step


@pytest.mark.parametrize("mean", [8, 16])
def test_layer_macs_are_those_that_torch_counts_and_masked_is_the_same_function(mean):
    torch.manual_seed(0)
    x = torch.randn(96, 128) * torch.randn(96, 1).exp()
    layer = layers.layer_of(128, 32, mean, x)
    cell = layer._cell(x)
    ranks = layer.ranks[cell]
    assert len(set(ranks.tolist())) > 3
    assert mean - 1 < float(ranks.double().mean()) <= mean
    assert flops(lambda: layer(x)) == int(ranks.sum()) * 2 * 128
    masked = layers.Masked(layer, cell)
    torch.testing.assert_close(masked(x), layer(x)[0], rtol=1e-4, atol=1e-5)
    assert flops(lambda: masked(x)) == 96 * 32 * 2 * 128
    expected = layer(x)[0][layer._score(x)[0].argsort(stable=True)]
    known = layers.of_known_cells(copy.deepcopy(layer), x)
    torch.testing.assert_close(known(), layer(x)[0])
    assert flops(known) == int(ranks.sum()) * 2 * 128
    inside = layers.inside(copy.deepcopy(layer), x)
    torch.testing.assert_close(inside(), expected, rtol=1e-4, atol=1e-5)
    assert flops(inside) == int(ranks.sum()) * 2 * 128


def test_of_rounds_the_quarter_counts_that_took_least(monkeypatch):
    rounds = [4.0] * 3 + [9.0, 3.0, 5.0, 2.0, 7.0, 6.0, 8.0, 1.0]  # the first three warm up
    seconds = iter([pair for each in rounds for pair in ((each, each), (2 * each, 3 * each))])
    monkeypatch.setattr(layers.measure, "timed", lambda call, device: next(seconds))
    times = layers.interleaved({"a": list, "b": list}, 8)
    assert next(seconds, None) is None
    assert times["a"] == {"median": 1500.0, "iqr": 500.0, "wall": 1500.0}  # of 1 and 2 seconds
    assert times["b"] == {"median": 4500.0, "iqr": 1500.0, "wall": 3000.0}


def test_the_layer_record(tmp_path):
    rows = execute(Run("layer", "ours", "64x48", 16, 2), tmp_path)["rows"]
    assert rows["dense"]["macs"] == 64 * 64
    assert rows["masked 4"]["macs"] == 2 * 64 * 16 == rows["static 16"]["macs"]
    assert 0.8 * 2 * 64 * 4 < rows["grouped 4"]["macs"] <= 1.1 * 2 * 64 * 4
    assert all(row["median"] > 0 for row in rows.values())


def test_step_subjects_differ_in_what_runs_and_ours_measure(tmp_path):
    found = steps.subjects(8, 32)
    x = torch.randn(steps.SAMPLES, 5, 32)
    base = found["frozen layer"]
    for name, layer in found.items():
        with torch.no_grad():
            assert layer(x).shape == base(x).shape
        steps.step_of(layer, x)()
        window = getattr(layer, "window", None)
        assert (window is not None) == name.startswith("ours")
    quarter = found["ours, mean rank 2, 4 states"]
    assert [len(set(row.nonzero().flatten().tolist())) for row in quarter.adlrns_kept] == [2] * 4
    assert len({tuple(row) for row in quarter.adlrns_kept.tolist()}) == 4
    assert (quarter.basis is not None, quarter.grams is not None) == (True, False)  # after the warm-up
    warm = found["ours, all directions"]
    assert (warm.basis is not None, warm.grams is not None) == (False, True)
    time = lambda ms: {"median": ms, "iqr": 0.0}
    rows = steps.weighted({
        "frozen layer": time(10.0), "LyCORIS LoRA, bypass": time(12.0), "ours": time(14.0),
    })  # fmt: skip
    assert rows["ours"]["overhead"] == pytest.approx(0.4)
    assert rows["ours"]["to_bypass"] == pytest.approx(14 / 12)
    assert execute(Run("step", "ours", "32", 8, 2), tmp_path)["rows"]["LyCORIS LoRA, bypass"]["to_bypass"] == 1


# Patches


@pytest.fixture
def few(monkeypatch):
    """Patches that are no images; simple and complex ones."""
    random = torch.Generator().manual_seed(0)
    clean = torch.rand(600, 64, generator=random) * torch.rand(600, 1, generator=random)
    data = Patches(clean + 0.1 * torch.randn(clean.shape, generator=random), clean, 200)
    monkeypatch.setattr(patches, "load", lambda seed: (data, data))
    return data


@pytest.mark.parametrize("method", patches.METHODS)
def test_patch_macs_are_those_that_torch_counts(method, few, tmp_path):
    model = patch_network(32, 0)
    run = Run("patches", method, "32", 4, 1, 1e-3, 0, "0")
    scores = []
    made = patches.METHODS[method](model, few, run, lambda *each: scores.append(each))
    if method == "dylora":
        made.eval().cut(3)
    counted = flops(lambda: made(few.noisy)) / len(few.clean)
    spent = patches.macs(made, few)
    if method == "rana":  # masked: torch counts what the mask has thrown away
        thrown = sum((m.first.out_features - m.kept) * m.second.out_features for m in made if hasattr(m, "kept"))
        assert thrown > 0
        counted -= thrown
    assert spent == pytest.approx(counted)
    share = 100 * spent / patches.weights_of(model)
    asked = patches.share_of(model, 3 if method == "dylora" else 4)
    assert share <= asked * 1.03
    assert share == pytest.approx(asked, rel=0.25)
    assert patches.share_of(model, 4) == pytest.approx(100 * 4 * (96 + 64 + 96) / (64 * 32 + 32 * 32 + 32 * 64))


@pytest.mark.slow
def test_patch_runs_score_what_they_trained(few, tmp_path):
    dense = execute(Run("patches", "dense", "32", 0, 2, 0.0, 0, "2"), tmp_path)
    assert (tmp_path / "patches_32_2_0.pt").is_file()
    assert dense["results"]["free"]["0"]["percent"] == 100
    for method, stages in {
        "static": {"free", "free, SVD-LLM", "tuned"}, "dylora": {"tuned"}, "rana": {"free", "tuned"},
        "ours": {"free", "tuned"},
    }.items():  # fmt: skip
        record = execute(Run("patches", method, "32", 0 if method == "dylora" else 4, 3, 3e-3, 0, "2"), tmp_path)
        assert set(record["results"]) == stages
        assert set(record["results"]["tuned"]) == ({"4", "6"} if method == "dylora" else {"4"})
        if "free" in stages:
            assert record["results"]["tuned"]["4"]["psnr"] > record["results"]["free"]["4"]["psnr"]
        again = execute(Run("patches", method, "32", 0 if method == "dylora" else 4, 3, 3e-3, 0, "2"), tmp_path)
        assert again["results"] == record["results"]
    times = execute(Run("time", "ours", "32", 0, 2, base="2"), tmp_path)["rows"]
    assert set(times) == {"dense 0", "static 4", "ours 4", "static 6", "ours 6"}


# Adapters


def adapters_of(name, rank=2, seed=0, steps_=8):
    torch.manual_seed(0)
    return methods.METHODS[name](adapter.fresh_model(), rank, steps_, seed)


@pytest.mark.slow
def test_the_layers_are_those_that_lycoris_adapts():
    ours = adapters_of("adlrns")
    assert set(ours.modules) == set(ours.layers) == set(adapter.rank_one())
    assert len(ours.layers) == len(ours.made.unet_loras)


@pytest.mark.parametrize("name", ["lora", "dylora", "tlora", "adlrns"])
def test_adapter_macs_are_those_that_torch_counts(name):
    batch = adapter.training_data("24", 0).batch(0, 4)
    base = flops(lambda: adapter.fresh_model().loss(batch))
    method = adapters_of(name)
    if name == "adlrns":
        for number, lora in enumerate(method.modules.values()):
            kept = torch.arange(lora.lora_dim) < torch.tensor([1, 2, 3, 4, 5, 6])[:, None].roll(number, 0)
            lora.set_table(kept, torch.zeros(kept.shape), torch.ones(kept.shape))
    method.evaluate(2, batch.timesteps)
    counted = (flops(lambda: method.model.loss(batch)) - base) / 4
    if name == "tlora":  # masked, so torch counts all four directions
        assert counted == 4 * sum(adapter.rank_one().values())
        assert adapter.macs(method, 2, torch.tensor([0, 999])) == (4 + 1) / 2 * sum(adapter.rank_one().values())
    else:
        assert adapter.macs(method, 2, batch.timesteps) == pytest.approx(counted)


@pytest.mark.slow
def test_peft_s_ranks_are_what_is_left_of_its_budget():
    method = adapters_of("adalora", rank=2, steps_=20)
    adapter.train(method, Run("adapter", "adalora", "24", 2, 20, 2e-2, 0))
    left = sum(int(kept) for kept in method.kept(2, torch.zeros(1)).values())
    assert 0 < left <= 2 * len(method.layers)
    assert float(method.penalty().detach()) > 0
    assert method.stored() < sum(p.numel() for p in method.parameters())


@pytest.mark.slow
def test_every_method_starts_at_the_frozen_model():
    batch = adapter.training_data("24", 0).batch(0, 2)
    with torch.no_grad():
        plain = adapter.fresh_model().loss(batch)
        for name in methods.METHODS:
            method = adapters_of(name)
            method.evaluate(2, batch.timesteps)
            torch.testing.assert_close(method.model.loss(batch), plain, rtol=1e-5, atol=1e-6, msg=name)


def pair_of(kind, rank):
    torch.manual_seed(0)
    layer = nn.Linear(12, 14) if kind == "linear" else nn.Conv2d(12, 14, 1)
    x = torch.randn(3, 5, 12) if kind == "linear" else torch.randn(3, 12, 4, 4)
    plain, cut = copy.deepcopy(layer), Cut()
    pair = Pair(layer, rank, cut, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.normal_()
    return pair, cut, x, layer(x) - plain(x), lambda: layer(x) - plain(x)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_cuts_of_a_pair(kind):
    pair, cut, x, full, now = pair_of(kind, FULL_RANK)

    def expected(weights):
        diff = (pair.lora_up * weights) @ pair.lora_down
        return x @ diff.T if kind == "linear" else torch.einsum("oi,nihw->nohw", diff, x)

    ones = torch.ones(FULL_RANK)
    torch.testing.assert_close(full, expected(ones), rtol=1e-4, atol=1e-4)
    cut.prefix = 3
    torch.testing.assert_close(now(), expected(torch.arange(FULL_RANK) < 3), rtol=1e-4, atol=1e-4)
    cut.prefix, cut.scale = None, torch.linspace(0, 1, FULL_RANK)
    torch.testing.assert_close(now(), expected(cut.scale), rtol=1e-4, atol=1e-4)
    cut.scale, cut.ranks = None, torch.tensor([8, 1, 4])
    for sample, rank in enumerate(cut.ranks):
        torch.testing.assert_close(
            now()[sample], expected(torch.arange(FULL_RANK) < rank)[sample], rtol=1e-4, atol=1e-4
        )


def test_published_rules():
    tlora = adapters_of("tlora", rank=4)
    ranks = tlora.at(torch.arange(1000))
    assert (int(ranks[0]), int(ranks[1]), int(ranks[999])) == (8, 7, 1)
    assert float(ranks.double().mean()) == pytest.approx(4, rel=0.01)
    assert (ranks.diff() <= 0).all()
    matryoshka = adapters_of("matryoshka")
    matryoshka.before(0, torch.zeros(1))
    assert matryoshka.cut.scale.tolist() == pytest.approx(
        [(2**0.5 + 1 + 0.5**0.5) / 3] * 2 + [(1 + 0.5**0.5) / 3] * 2 + [0.5**0.5 / 3] * 4
    )
    matryoshka.evaluate(2, torch.zeros(1))
    assert matryoshka.cut.scale.tolist() == pytest.approx([2**0.5] * 2 + [0] * 6)
    dylora, drawn = adapters_of("dylora"), []
    for step in range(200):
        dylora.before(step, torch.zeros(1))
        drawn.append(dylora.cut.prefix)
    assert set(drawn) == set(range(1, 9))
    assert not any(p.grad_fn for p in dylora.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tlora", "adlrns"])
def test_an_adapter_run_depends_on_nothing_but_its_description(name, tmp_path):
    run = Run("adapter", name, "24", 2, 4, 6e-3, 3)
    first = execute(run, tmp_path)
    torch.randn(17)
    assert execute(run, tmp_path)["results"] == first["results"]
    assert first["results"]["2"]["loss"] < 0.4535  # without an adapter
    assert execute(Run("adapter", "lora", "24", 2, 8, 1e30, 3), tmp_path)["results"] == {}


# Plan, store, driver, report: with runs that take no time

TINY = plan.Mode("tiny", ("1024x256",), 3, {256: 1}, 1, {"all": 4, "24": 2}, (2, 4), trials=2, seeds=2)


def planted(run, folder):
    """As if rates near the first were best, and ours better by 10 %."""
    centre = plan.LR_OF.get(run.method, plan.LR.get(run.part))
    badly = 1 + abs(math.log(run.lr / centre)) if run.lr else 1.0
    record = {**run.__dict__, "code": runs.code(run.part) if run.method in runs.OURS else "", "protocol": runs.PROTOCOL}
    record |= {"seconds": 1.0, "unit_ms": 2.0, "load": 0.1, "stored": 100}
    ranks = [run.rank] if run.rank else [2, 4]
    if run.part == "patches":
        value = 20.0 - badly + 2 * (run.method == "ours") + 0.1 * run.seed % 1
        each = {str(rank): {"psnr": value + 0.01 * rank, "percent": 1.2 * rank} for rank in ranks}
        return record | {
            "results": {"free": {"0": {"psnr": 25.0, "percent": 100}}} if run.method == "dense" else {"tuned": each}
        }
    if run.part == "adapter":
        loss = 0.3 * badly * (0.9 if run.method == "adlrns" else 1.0) + 0.001 * run.seed % 1
        ranks = [0] if run.method == "none" else ranks
        return record | {"results": {str(r): {"loss": loss, "rank": r, "macs": 1} for r in ranks}}
    kinds = [f"{kind} {rank}" for kind in ("static", "masked", "grouped") for rank in (32, 64)]
    kinds += [f"grouped {rank}, {where}" for rank in (32, 64) for where in ("of known cells", "in a model")]
    names = {"layer": kinds,
             "step": ["frozen layer", "LyCORIS LoRA, bypass", "ours, all directions"],
             "time": ["dense 0", "static 8", "ours 8"]}[run.part]  # fmt: skip
    row = {"median": 1.0, "iqr": 0.1, "macs": 2.0, "overhead": 0.1, "step": 1.0, "to_bypass": 1.0}
    return record | {"rows": {"dense": {**row, "median": 5.0}, **dict.fromkeys(names, row)}}


@pytest.fixture
def made():
    return plan.Plan(TINY, "unused")


def finish(known, store, work=planted, **more):
    with workers(0) as pool, Bar("test", 1) as bar:
        return do(work, known, store, "unused", pool, bar, **more)


@pytest.mark.slow
def test_every_method_gets_the_same_trials_ranks_and_seeds(made, tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    assert finish(lambda: made.known(store), store) == {}
    assert made.complete(store)
    assert len(store.records) == len(made.everything())
    for part, names in (("patches", patches.METHODS), ("adapter", [n for n in methods.METHODS if n != "none"])):
        for data in ("256",) if part == "patches" else ("all", "24"):
            shapes = set()
            for name in names:
                results = []
                for cell in [cell for cell in made.cells() if cell[:3] == (part, name, data)]:
                    trials, lr = made.trials(cell), made.chosen(cell, store)
                    assert lr == made.rates(cell)[0]
                    assert {run.seed for run in trials} == {TRIAL_SEED}
                    assert len({run.lr for run in trials}) == 2
                    results += [(run.seed, rank) for run in made.final(cell, lr)
                                for rank in ([run.rank] if run.rank else made.ranks(part, data))]  # fmt: skip
                shapes.add((trials[0].steps, tuple(sorted(results))))
            assert len(shapes) == 1


def test_trials_are_a_third_of_the_seeds_and_one_lucky_trial_does_not_decide(tmp_path):
    many = plan.Plan(dataclasses.replace(TINY, trials=3, more_seeds={"24": 9}), "unused")
    cell, store = ("adapter", "lora", "24", 2), Store(tmp_path / "runs.jsonl")
    trials, (first, second, third) = many.trials(cell), many.rates(cell)
    assert first > second > third
    assert [run.seed for run in trials] == 3 * [TRIAL_SEED, TRIAL_SEED + 1, TRIAL_SEED + 2]
    results = [run.seed for run in many.final(cell, first)]
    assert results == list(range(100, 109))  # seeds 0 to 11 were looked at while the plan was made
    assert not set(results) & {run.seed for run in trials}
    losses = dict(zip(trials, (0.3, 0.3, 0.3, 0.31, 0.28, 0.32, 0.4, 0.4, 0.4), strict=True))
    for number, (run, loss) in enumerate(losses.items()):
        assert many.chosen(cell, store) is None
        store.add({**planted(run, None), "results": {"2": {"loss": loss, "rank": 2, "macs": 1}}})
        assert number == len(store.records) - 1
    assert many.chosen(cell, store) == first
    store.add({**planted(trials[3], None), "results": {"2": {"loss": 0.29, "rank": 2, "macs": 1}}})
    assert many.chosen(cell, store) == second


def test_modes_and_names(made):
    with pytest.raises(ValueError, match="there is no 'lore'; there are .*lora"):
        plan.narrowed(plan.FULL, None, ["lore"])
    with pytest.raises(ValueError, match="there is no 'layers'; there are layer"):
        plan.narrowed(plan.FULL, ["layers"], None)
    with pytest.raises(ValueError, match="there is no '25'; there are 256, 1024, all, 100, 24"):
        plan.narrowed(plan.FULL, None, None, ["25"])
    small = plan.Plan(plan.narrowed(plan.FULL, ["patches"], None, ["256"]), "unused")
    assert {(run.part, run.data) for run in small.everything()} == {("patches", "256")}
    narrow = plan.Plan(plan.narrowed(plan.FULL, ["adapter"], ["lora"]), "unused")
    assert {(run.part, run.method) for run in narrow.everything()} == {("adapter", "lora"), ("adapter", "none")}
    assert set(plan.FULL.ranks) == {2, 4, 8}
    assert plan.FULL.trials == max(map(len, plan.RATES.values()))
    seeds = {
        data: {len(narrow.final(cell, 1.0)) for cell in narrow.cells() if cell[2] == data} for data in ("all", "24")
    }
    assert seeds == {"all": {plan.FULL.more_seeds["all"]}, "24": {plan.FULL.more_seeds["24"]}}
    few = plan.Plan(plan.narrowed(plan.FULL, ["adapter"], None), "unused")
    assert {cell[1] for cell in few.cells() if cell[2] == "24"} == {"lora", "adlrns"}
    assert {cell[1] for cell in few.cells() if cell[2] == "all"} == {*methods.METHODS} - {"none"}
    assert set(plan.FULL.images) == {"all", "100", "24"}
    assert all(width in patches.RANKS for mode in plan.MODES.values() for width in mode.widths)
    assert [len(adapter.training_data(name, 0)) for name in ("all", "100", "24")] == [283, 100, 24]


def test_the_estimate_is_set_up_and_steps(made, tmp_path):
    costs = Costs(made, Store(tmp_path / "costs.jsonl"))
    finish(lambda: costs.tastes, costs.store)
    run = made.run("adapter", "lora", "all", 4, 0.1, 2)
    taste = made.taste(run)
    assert (taste.steps, taste.method, taste.seed) == (6, "lora", 0)
    assert costs.seconds(run) == pytest.approx(1.0 - 6 * 2e-3 + run.steps * 2e-3)
    together, alone = [run] * 4, [run for run in made.measurements() if run.part == "step"]
    assert costs.minutes(together, 2) == pytest.approx(4 * costs.seconds(run) / 120)
    assert costs.minutes(alone, 2) == pytest.approx(costs.seconds(alone[0]) / 60)


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(made, tmp_path):
    file, done = tmp_path / "runs.jsonl", []
    store = Store(file)

    def work(run, folder):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(run.key)
        return planted(run, folder)

    with pytest.raises(KeyboardInterrupt):
        finish(lambda: made.known(store), store, work)
    file.write_bytes(file.read_bytes() + b'{"part": "adap')  # the power went off
    store = Store(file)
    assert set(store.records) == set(done)
    again = []
    noted = lambda run, folder: again.append(run.key) or planted(run, folder)
    assert finish(lambda: made.known(store), store, noted) == {}
    assert not set(again) & set(done)
    assert made.complete(Store(file))
    again.clear()
    finish(lambda: made.known(store), store, noted)
    assert again == []


@pytest.mark.slow
def test_failures_stop_nothing_else_and_are_tried_again(made, tmp_path):
    store = Store(tmp_path / "runs.jsonl")
    work = lambda run, folder: 1 / 0 if run.method == "rana" else planted(run, folder)
    failed = finish(lambda: made.known(store), store, work)
    assert {"rana" in why and "ZeroDivisionError" in why for why in failed.values()} == {True}
    assert not made.complete(store)
    assert finish(lambda: made.known(store), store) == {}
    assert made.complete(store)
    finish(lambda: made.known(store), store, stop=lambda: True)


@pytest.mark.slow
def test_what_measures_time_runs_alone_and_last(made, tmp_path):
    order, store = [], Store(tmp_path / "runs.jsonl")
    work = lambda run, folder: order.append(run.alone) or planted(run, folder)
    finish(lambda: made.known(store), store, work, jobs=2)
    assert order == sorted(order)
    assert sum(order) == 3


@pytest.mark.slow
def test_runs_of_other_code_are_stale(made, tmp_path, monkeypatch):
    store = Store(tmp_path / "runs.jsonl")
    finish(lambda: made.known(store), store)
    assert not made.stale(store)
    monkeypatch.setattr(plan, "code", lambda part: "other")
    stale = made.stale(store)
    assert stale
    assert all('"ours"' in key or '"adlrns"' in key for key in stale)
    store.forget(stale)
    assert not made.complete(store)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_report_is_written_from_what_is_there(made, tmp_path, share):
    whole = Store(tmp_path / "whole.jsonl")
    finish(lambda: made.known(whole), whole)
    store = Store(tmp_path / "some.jsonl")
    for record in list(whole.records.values())[: round(share * len(whole.records))]:
        store.add(record)
    found = summarise(made, store)
    assert (found["missing"] == 0) == (share == 1)
    drawn = pictures.save(plots.figures(found), tmp_path / "some")
    text = report.markdown(found, ENV, "cmd", drawn)
    assert json.loads(json.dumps(found, allow_nan=False))
    assert ("unfinished" in text) == (share < 1)
    if share == 1:
        assert set(drawn) == {"some_layer.png", "some_patches.png", "some_adapter.png"}
        for name in (*patches.METHODS, *methods.METHODS):
            assert name == "none" or name in text
        kept = {row["what"]: row["kept"] for row in found["promises"]}
        assert kept["adapter, all images, mean rank 4: loss to lora's, the best other"] == "yes"
        assert kept["adapter, 24 images, mean rank 2: loss to static's"] == "yes"
        assert kept["1024x1024, batch 256: grouped 64 to dense"] == "yes"
        assert kept["1024x1024, batch 256: grouped 64 to masked 64"] == "no"
        assert next(verdict for what, verdict in kept.items() if what.startswith("patches at")) == "yes"
        assert "over" in text


def test_a_promise_over_budget_is_not_kept():
    def row(name, loss, rank, *more):
        losses = (loss, *more)
        return {"method": name, "mean_rank": 4, "rank": rank, "loss": sum(losses) / len(losses),
                "by_seed": dict(enumerate(losses))}  # fmt: skip

    empty = {"layer": {}, "step": {}, "patches": {}, "dense": {}, "time": {}}

    def verdict(*rows):
        found = promises({**empty, "adapter": {"all": list(rows)}})
        return next((each["kept"] for each in found if each["what"].startswith("adapter")), None)

    assert verdict(row("lora", 0.3, 4), row("adlrns", 0.29, 4.05)) == "yes"
    assert verdict(row("lora", 0.3, 4), row("adlrns", 0.29, 4.2)) == "no"
    assert verdict(row("lora", 0.3, 4), row("adlrns", 0.31, 4)) == "no"
    assert verdict(row("lora", 0.3, 4), row("tlora", 0.2, 8), row("adlrns", 0.29, 4)) == "yes"  # a cost of its own
    assert verdict(row("adlrns", 0.31, 4)) is None


def test_not_worse_is_a_bound_on_what_is_lost_not_a_test_that_few_seeds_pass():
    def row(name, *losses, rank=4):
        return {"method": name, "mean_rank": 4, "rank": rank, "loss": sum(losses) / len(losses),
                "by_seed": dict(enumerate(losses))}  # fmt: skip

    def shown(*rows, none=0.4, data="24"):
        empty = {"layer": {}, "step": {}, "patches": {}, "dense": {}, "time": {}}
        found = promises({**empty, "none": none, "adapter": {data: list(rows)}})
        return [(each["asked"], each["value"], each["kept"]) for each in found if each["what"].startswith("adapter")]

    lora = row("lora", 0.2, 0.3)  # gains 0.15 over none: 0.0015 may be lost, 0.6 % of 0.25
    # The difference of both seeds is the same, so its error is 0.
    assert shown(lora, row("adlrns", 0.201, 0.301)) == [("surely < 1.0060", "1.0040 ± 0.0000, surely < 1.0040", "yes")]
    assert shown(lora, row("adlrns", 0.202, 0.302))[0][2] == "no"
    assert shown(lora, row("adlrns", 0.201, 0.301, rank=5))[0][2] == "no"
    # A mean that is better proves nothing if seeds disagree: t of one degree of freedom at 95 % is 6.3138.
    noisy = shown(lora, row("adlrns", 0.197, 0.301))[0]
    assert noisy == ("surely < 1.0060", f"0.9960 ± 0.0080, surely < {0.996 + 6.3138 * 0.008:.4f}", "no")
    assert shown(lora, row("adlrns", 0.197, 0.301), data="all")[0] == ("< 1", "0.9960 ± 0.0080", "yes")
    assert shown(row("lora", 0.2), row("adlrns", 0.1)) == []  # one seed says nothing of the spread
    assert shown(lora, row("adlrns", 0.1, 0.1), none=None) == []


# Equal bytes


@pytest.mark.slow
def test_arms_have_files_of_equal_bytes_and_the_page_compares_them_by_seed():
    found = [equal_bytes.result(equal_bytes.run_of(arm, 2, 1e-3, 0, 6)) for arm in equal_bytes.ARMS]
    lora, shipped, any_rank, bins = found
    assert any_rank["values"] <= lora["values"]
    assert shipped["shapes"] < any_rank["shapes"]
    assert 0.97 * lora["values"] < shipped["values"] <= lora["values"] == bins["values"]
    assert 2 * shipped["values"] < shipped["bytes"]
    assert all(0.2 < each["loss"] < 0.5 for each in found)
    again = [{**each, "seed": 1, "loss": each["loss"] - 0.01 * (each["arm"] == "ADLRNS")} for each in found]
    page = equal_bytes.markdown([*found, *again], 6, {"date": "today", "commit": "c"})
    more = shipped["loss"] - lora["loss"] - 0.005
    assert f"| 2 | ADLRNS | {shipped['loss'] - 0.005:.5f} | {more:+.5f} ± 0.00500 |" in page


@pytest.mark.slow
def test_the_benchmark_of_images_has_a_dense_arm_and_one_of_its_cost(tmp_path):
    from benchmarks.adlrns import images

    assert images.main(["--epochs", "1", "--seeds", "1", "--results", str(tmp_path)]) == 0
    rows = {row["arm"]: row for row in json.loads((tmp_path / "adlrns_images.json").read_text())["runs"]}
    assert list(rows) == list(images.ARMS)
    assert 0.97 * rows["ADLRNS"]["macs"] < rows["dense, narrower"]["macs"] <= rows["ADLRNS"]["macs"] * 1.001
    assert rows["ADLRNS"]["macs"] < 0.43 * rows["dense"]["macs"]
    assert "| dense, narrower |" in (tmp_path / "adlrns_images.md").read_text()
