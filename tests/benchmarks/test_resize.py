"""The benchmark of resizing: rivals' rules, sizes that are equal, seeds that are paired, and its page."""

import dataclasses as dc

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.resize import plan, report, rivals, runs, summary
from tests.support import lora_files as files
from tests.support.dense import dense

ENV = {"machine": "m", "device": "cpu", "threads": 1, "torch": "2", "commit": "c", "date": "d", "load_average": 0.0}


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "a.safetensors"
    shapes = {"lora_unet_x": (40, 30), "lora_unet_y": (80, 20), "lora_unet_c": (20, 10, 1, 1)}
    tensors = files.plain(path, shapes, rank=8, alpha=8.0, decay=0.7)
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
    shapes = {"lora_unet_x": (40, 30), "lora_unet_y": (80, 20), "lora_unet_c": (20, 10, 1, 1)}
    files.plain(tmp_path / "small.safetensors", shapes, rank=2, alpha=2.0)
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


# From runs to a page


@pytest.fixture
def made(tmp_path):
    """A plan of two seeds, and a store with records as runs leave them."""
    mode = dc.replace(plan.FULL, seeds=2)
    made, store = plan.Plan(mode, tmp_path), runs.Store(tmp_path / "runs.jsonl")

    def done(run, **found):
        store.add({**dc.asdict(run), "code": made.code(run) or "", "protocol": runs.PROTOCOL, "bytes": 100, **found})

    for run, loss in zip(made.trials(16), (0.3, 0.29), strict=True):
        done(run, loss=loss)
    assert made.rate(16, store) == plan.RATES[1]
    for run in made.finals(16, plan.RATES[1]):
        parent = 0.28 + 0.01 * (run.seed - plan.FIRST_SEED)
        done(run, loss=parent)
        results = [{"arm": arm, "part": part, "bytes": 1000 // part, "loss": parent + place * part * 1e-4}
                   for part in runs.PARTS for place, arm in enumerate(summary.ARMS[:-1], 1)]  # fmt: skip
        done(plan.resized(run), loss=parent, none=0.45, results=results, calibration_seconds=2.0, real=True)
    return made, store, done


def test_losses_are_added_to_the_parent_s_of_the_same_seed(made):
    planned, store, done = made
    world = summary.summarise(planned, store)["worlds"]["16"]
    first = summary.row_of(world["rows"], runs.OURS, 4)
    assert first["added"] == pytest.approx([4e-4, 4e-4])
    assert summary.best_of_sd_scripts(world["rows"], 4)["arm"] == "fixed"
    assert summary.row_of(world["rows"], summary.TRAINED, 4) is None
    done(planned.finals(4, plan.RATES[1])[1], loss=0.291)
    world = summary.summarise(planned, store)["worlds"]["16"]
    assert summary.row_of(world["rows"], summary.TRAINED, 4)["added"] == pytest.approx([0.001])


def test_the_page_says_what_is_there_and_what_is_missing(made):
    planned, store, _ = made
    found = summary.summarise(planned, store)
    text = report.markdown(found, ENV, "command", ["resize_full_loss.png"])
    assert f"**unfinished**: {found['missing']}" in text
    assert found["missing"] == 2  # LoRAs of rank 4
    assert "| metric and level | 0.20 ± 0.00 | 0.40 ± 0.00 |" in text
    assert "to 1/4: 0.20 of what the best mode of sd-scripts adds (fixed)" in text
    assert report.figures(found)["loss"].axes[0].get_xlabel() == "bytes"


def test_images_are_disjoint():
    pytest.importorskip("sklearn")
    from benchmarks.resize import world

    parts = {part: {tuple(image.flatten().tolist()) for image in world.images(part, 0).pixels}
             for part in ("training", "calibration")}  # fmt: skip
    held_out = {tuple(image.flatten().tolist()) for image in world.held_out().pixels}
    assert not parts["training"] & parts["calibration"]
    assert not held_out & (parts["training"] | parts["calibration"])
    assert min(map(len, [*parts.values(), held_out])) > 50
