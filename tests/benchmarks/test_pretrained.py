"""The pretrained benchmark, with a tiny random model in the place of SmolLM2: its runs, its order, its report."""

import json
import math

import pytest
import torch

from benchmarks.campaign import pictures
from benchmarks.campaign.driver import Bar, do, workers
from benchmarks.convergence.optimizers import OPTIMIZERS, Entry
from benchmarks.convergence.runs import PROTOCOL
from benchmarks.convergence.store import Store
from benchmarks.convergence.summary import plain
from benchmarks.pretrained import __main__ as command
from benchmarks.pretrained import model, plan, plots, report, summary, texts, worlds
from benchmarks.pretrained.arms import ARMS, FINALISTS, RATES, Arm, entry_of
from benchmarks.pretrained.plan import ANCHOR, FULL, LOKR, OTHER, Plan, rank_factor
from benchmarks.pretrained.runs import execute
from benchmarks.pretrained.worlds import WORLDS

ENV = {"machine": "m", "device": "cpu", "threads": 1, "torch": "2", "commit": "c", "date": "d", "load_average": 0.0}
TINY = plan.Mode(
    "tiny",
    ("torch-adamw", "hina-default"),
    ("torch-adamw",),
    (1e-3, 1e-2),
    steps=8,
    shorter=(4,),
    longer=12,
    seeds=(1, 2),
)
CHOSEN = {"english-lora-r8-a8", "python-lora-r8-a8", "english-lokr-r8-a8"}


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **size)).to(model.DTYPE).eval()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A model that has read nothing, and texts with something to learn: each token but every fifth follows the last."""
    made = llama()
    train, held_out = (
        torch.where(
            torch.arange(500) % 5 == 0, torch.randint(32, (500,), generator=torch.Generator().manual_seed(s)), 0
        )
        for s in (1, 2)
    )
    monkeypatch.setattr(model, "base", lambda folder: made)
    monkeypatch.setattr(model, "identity", lambda: "tiny")
    monkeypatch.setattr(texts, "tokens", lambda folder, text: (train, held_out))
    monkeypatch.setattr(worlds, "LENGTH", 16)
    monkeypatch.setattr(worlds, "HELD_OUT", 8)
    return tmp_path


def finish(made, store, folder, work=execute, **more):
    """What failed."""
    with workers(0) as pool, Bar("test", 1) as bar:
        return do(work, lambda: made.known(store), store, folder, pool, bar, **more)


def invented(loss):
    """A record maker that trains nothing."""
    return lambda run, folder: {
        **run.__dict__, "loss": loss(run), "training_losses": [3.0, loss(run)], "step_ms": 1.0, "optimizer_ms": 0.5,
        "seconds": 2.0, "code": "", "protocol": PROTOCOL,
    }  # fmt: skip


def bowl(run):
    """Best at 1e-2 times the rule, for everyone."""
    rank, alpha = (float(part[1:]) for part in run.workload.split("-")[2:])
    off = math.log10(run.lr / 1e-2 / rank_factor(int(rank), alpha)) if run.lr else 2.0
    return 2.5 + 0.1 * off * off - 0.1 * math.log(max(1, run.steps) / 40) + 0.01 * run.seed


# The worlds


@pytest.mark.slow
@pytest.mark.parametrize("world", sorted(CHOSEN))
def test_an_adapter_starts_as_the_model_and_learns(world, tiny):
    made = Plan(TINY, tiny)
    base = execute(made.base(world), tiny)["loss"]
    task = WORLDS[world].task(tiny, 1)
    assert task.held_out() == base
    record = execute(made.run(world, "torch-adamw", 1e-2, 12, 1), tiny)
    assert math.isfinite(record["loss"])
    assert record["loss"] < base - 0.05
    assert len(record["training_losses"]) == 12
    assert execute(made.run(world, "torch-adamw", 1e-2, 12, 1), tiny)["training_losses"] == record["training_losses"]
    assert execute(made.run(world, "torch-adamw", 1e-2, 12, 2), tiny)["training_losses"] != record["training_losses"]


@pytest.mark.parametrize(("world", "scale"), [("english-lora-r8-a8", 1.0), ("english-lora-r8-a1", 1 / 8)])
def test_every_linear_layer_of_the_blocks_has_an_fp32_adapter_and_alpha_counts(world, scale, tiny):
    task = WORLDS[world].task(tiny, 1)
    assert len(task.named) == 2 * 2 * 7
    assert {p.dtype for _, p in task.named} == {torch.float32}
    assert {min(p.shape) for _, p in task.named} == {8}
    assert not any(p.requires_grad for p in task.model.parameters())
    assert {lora.scale for lora in task.network.loras} == {scale}


def test_nothing_is_trained_on_and_held_out(monkeypatch):
    for make in texts.TEXTS.values():
        train, held_out = make()
        assert len(train) > 2 * len(held_out) > 0
        lines = {line for line in train.split("\n") if len(line) > 60}
        shared = [line for line in held_out.split("\n") if len(line) > 60 and line in lines]
        assert len(shared) < 0.02 * len(held_out.split("\n"))


def test_worlds_are_every_rank_and_alpha_lokr_and_a_second_text():
    assert {ANCHOR, LOKR, OTHER} == CHOSEN <= set(WORLDS)
    assert {f"english-lora-r{r}-a{a:g}" for r in (2, 8, 32, 128) for a in (r, r / 2, 1)} == set(WORLDS) - {LOKR, OTHER}


# The plan


def test_the_plan_has_the_arms_and_what_decides_comes_first(tiny):
    for name in ARMS:
        assert name in OPTIMIZERS or ARMS[name].optimizer in OPTIMIZERS
        assert ARMS[name].rates in (RATES, (1.0,))
    assert {"torch-adamw", "bnb-adamw8bit", "hina-cautious", "hina-default", "hina-normuon", "camp-default"} <= set(
        ARMS
    )
    assert {"coptim-default", "po-normuon", "prodigy", "prodigy-plus"} <= set(ARMS)
    assert set(FINALISTS) <= set(ARMS)
    assert entry_of("hina-cautious").arguments == {"use_lora_muon": False, "use_cautious": True}
    made = Plan(FULL, tiny)
    first = [run for run in made.everything() if run.workload == ANCHOR and run.steps == 40 and run.seed == 1]
    assert made.everything()[1 : len(first) + 1] == first
    for arm in made.arms:
        assert sorted(run.lr for run in first if run.optimizer == arm) == sorted(ARMS[arm].rates)
    assert len({run.key for run in made.everything()}) == len(made.everything())
    with pytest.raises(ValueError, match="there is no 'hina-defualt'"):
        plan.narrowed(FULL, ["hina-defualt"])


def test_rates_of_other_ranks_follow_the_rule_and_the_plain_rate_is_there_too(tiny):
    assert rank_factor(8, 8) == 1
    assert rank_factor(32, 32) == 0.5
    assert rank_factor(8, 4) == 2
    made = Plan(FULL, tiny)
    cell = lambda arm, rank, alpha, lr: [(run.optimizer, run.lr) for run in made.cell(arm, rank, alpha, lr)]
    assert cell("torch-adamw", 32, 16, 1e-2) == [("torch-adamw", 1e-2)] * 2
    assert cell("torch-adamw", 8, 4, 1e-2) == [("torch-adamw", 1e-2), ("torch-adamw", 2e-2)]
    assert [lr for _, lr in cell("torch-adamw", 32, 32, 1e-2)] == [1e-2, 5e-3, 1.67e-3, 1.5e-2]
    assert cell("hina-default", 8, 1, 1e-2) == [("hina-default", 1e-2), ("hina-rank-free", 1e-2)]
    assert cell("hina-auto", 32, 32, 1.0) == [("hina-auto", 1.0)] * 2


def test_what_has_the_rule_built_in_is_told_of_alpha(tiny):
    task = WORLDS["english-lora-r8-a4"].task(tiny, 1)
    optimizer = entry_of("hina-rank-free").build(task.named, 1e-2)
    assert {member.scale for member in optimizer.members} == {0.5}
    assert optimizer.effective_lr == pytest.approx([2e-2])
    assert entry_of("hina-default").build(task.named, 1e-2).effective_lr == pytest.approx([1e-2 * 2**0.5])


def test_a_new_arm_leaves_the_runs_of_the_others_as_they_are(tiny, monkeypatch):
    store = Store(tiny / "runs.jsonl")
    assert not finish(Plan(TINY, tiny), store, tiny, invented(bowl))
    before = set(store.records)
    monkeypatch.setitem(ARMS, "new", Arm((1e-3, 1e-2), optimizer="hina-grams"))
    longer = plan.dc.replace(TINY, arms=(*TINY.arms, "new"))
    again = []
    finish(Plan(longer, tiny), store, tiny, lambda run, folder: again.append(run) or invented(bowl)(run, folder))
    assert {run.optimizer for run in again} == {"new"}
    assert before < set(store.records)


def test_other_code_makes_runs_stale_and_forgets_none(tiny, monkeypatch):
    made, store = Plan(TINY, tiny), Store(tiny / "runs.jsonl")
    finish(made, store, tiny, lambda run, f: invented(bowl)(run, f) | {"code": "then"})
    monkeypatch.setattr(plan, "code", lambda name: "then")
    assert not made.stale(store)
    monkeypatch.setattr(plan, "code", lambda name: "now")
    stale = made.stale(store)
    assert {store.records[key]["optimizer"] for key in stale} == {"hina-default"}
    assert all(store.get(run) for run in made.known(store))


def test_a_second_call_goes_on_where_the_first_stopped(tiny):
    made, file, done = Plan(TINY, tiny), tiny / "runs.jsonl", []

    def work(run, folder):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(run.key)
        return invented(bowl)(run, folder)

    with pytest.raises(KeyboardInterrupt):
        finish(made, Store(file), tiny, work)
    store, again = Store(file), []
    assert list(store.records) == done
    assert done == [run.key for run in made.known(store)][:7]
    finish(made, store, tiny, lambda run, folder: again.append(run.key) or invented(bowl)(run, folder))
    assert not set(done) & set(again)
    assert len(done) + len(again) == len(made.everything()) == len(store.records)


def test_an_arm_that_diverges_everywhere_has_no_best_rate_and_stops_nothing(tiny):
    made, store = Plan(TINY, tiny), Store(tiny / "runs.jsonl")
    lost = lambda run: None if run.optimizer == "torch-adamw" and run.steps else bowl(run)
    finish(made, store, tiny, invented(lost))
    assert made.best("torch-adamw", store) is None
    assert made.best("hina-default", store) == 1e-2
    assert all(store.get(run) for run in made.known(store))
    text = report.markdown(summary.restored(plain(summary.summarise(made, store))), ENV, "cmd", [])
    assert "| torch-adamw | diverged | diverged |" in text


# Arms


def test_arms_run_as_their_authors_say(tiny):
    assert ARMS["prodigy-plus"].clip == math.inf
    assert {ARMS["prodigy-plus"].factor(step, 40) for step in range(40)} == {1.0}
    assert ARMS["torch-adamw"].factor(0, 40) < 1 == ARMS["prodigy-constant"].factor(39, 40)
    made = Plan(FULL, tiny)
    same = {made.run(ANCHOR, arm, 1.0, 8, 1).identity for arm in ("prodigy-plus", "prodigy-plus-cosine")}
    assert len(same) == 2


def test_normuon_of_pytorch_optimizer_gets_vectors_apart():
    entry = OPTIMIZERS["po-normuon"]
    named = [("a", torch.nn.Parameter(torch.ones(4, 3))), ("b", torch.nn.Parameter(torch.ones(3)))]
    optimizer = entry.build(named, 0.02)
    assert [(group["use_muon"], group["lr"]) for group in optimizer.param_groups] == [(True, 0.02), (False, 0.02)]
    for _, param in named:
        param.grad = torch.randn_like(param)
    optimizer.step()
    step = (named[0][1].detach() - 1).square().mean().sqrt()
    assert step == pytest.approx(0.2 * 0.02, rel=0.15)  # Adam's size, as the paper has it


# The report


@pytest.mark.slow
def test_the_report_is_written_from_what_is_there(tiny):
    made, store = Plan(TINY, tiny), Store(tiny / "runs.jsonl")
    empty = summary.summarise(made, store)
    assert pictures.save(plots.figures(empty), tiny / "empty") == []
    assert "unfinished" in report.markdown(empty, ENV, "cmd", [])
    better = lambda run: bowl(run) - 0.1 * math.log(1 / 0.8) * (run.optimizer == "hina-default")
    finish(made, store, tiny, invented(better))
    found = summary.summarise(made, store)
    assert not found["missing"]
    ours, theirs = (found["sweeps"][ANCHOR][arm] for arm in ("hina-default", "torch-adamw"))
    assert ours.best == (1e-2, pytest.approx(bowl(made.run(ANCHOR, "torch-adamw", 1e-2, 8, 1)) - 0.0223, abs=1e-4))
    assert ours.behind == pytest.approx(-0.0223, abs=1e-4)
    assert ours.best_widely == 1.0
    assert theirs.behind == 0.0
    assert set(theirs.seeds) == {1, 2}
    for cell in found["cells"]["torch-adamw"]:
        assert cell.ruled == pytest.approx(cell.lowest, abs=1e-4)
        assert cell.plain >= cell.ruled
    assert found["budgets"]["torch-adamw"].to_reference == (1.0, "")
    json.loads(json.dumps(plain(found), allow_nan=False))
    drawn = pictures.save(plots.figures(found), tiny / "some")
    assert drawn == ["some_rates.png"]
    assert (tiny / "some_rates.png").is_file()
    text = report.markdown(summary.restored(plain(found)), ENV, "cmd", drawn)
    for part in ("hina-default", OTHER, LOKR, "Ranks and alphas", "Budgets"):
        assert part in text


def test_steps_to_equal_loss_are_those_that_were_put_in(tiny):
    mode = plan.dc.replace(TINY, finalists=TINY.arms)
    made, store = Plan(mode, tiny), Store(tiny / "runs.jsonl")
    faster = lambda run: bowl(run) - 0.1 * math.log(1 / 0.7) * (run.optimizer == "hina-default")
    finish(made, store, tiny, invented(faster))
    found = summary.summarise(made, store)["budgets"]["hina-default"].to_reference
    assert found.bound == ""
    assert found.steps == pytest.approx(0.7)


def test_without_the_package_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(model, "NEEDS", ("no-such-thing",))
    assert command.main(["--quick"]) == 0
    assert "skipped: no-such-thing is not installed" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_writes_results_and_what_is_not_installed_is_skipped(tiny, monkeypatch, capsys):
    monkeypatch.setattr(model, "missing", lambda: None)
    monkeypatch.setitem(OPTIMIZERS, "absent", Entry("no_such:Thing", needs="no-such-thing"))
    monkeypatch.setitem(ARMS, "absent", Arm())
    monkeypatch.setitem(plan.MODES, "quick", plan.dc.replace(TINY, arms=(*TINY.arms, "absent"), finalists=()))
    where = ["--jobs", "0", "--runs", str(tiny), "--results", str(tiny), "--minutes", "0"]
    assert command.main(["--quick", *where]) == 0
    said = capsys.readouterr().out
    assert "skipped: absent: no-such-thing is not installed" in said
    assert "7 runs, 0 of them done" in said
    assert command.main(["--quick", "--plan", *where]) == 0
    assert "7 runs, 7 of them done" in capsys.readouterr().out
    results = json.loads((tiny / "pretrained_tiny.json").read_text(encoding="utf-8"))
    assert set(results["sweeps"][ANCHOR]) == {"torch-adamw", "hina-default"}
    assert results["base"][ANCHOR] > results["sweeps"][ANCHOR]["torch-adamw"]["losses"]["0.01"]
