"""`hina-kohya soup`: the average of files of one run, against float64; what is no run is one line."""

import json
import math
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hina_kohya.cli import main
from hina_kohya.loras import power_profile
from hina_kohya.loras.reading import AdapterFile
from tests.support import lora_files as files

ROOT = Path(__file__).parents[2]
KINDS = [*files.KINDS, "dora"]


def first_file(folder, kind="lora", **more):
    path = folder / "start.safetensors"
    if kind == "dora":
        files.lycoris(path, "lora", weight_decompose=True, **more)
    else:
        files.lycoris(path, kind, **more)
    return path


def run_of(folder, start, steps=(100, 200, 300), change=0.2, dtype=torch.float32, **metadata):
    """Files along one path, as a training leaves them: the last without a number."""
    tensors = load_file(start)
    generator = torch.Generator().manual_seed(7)
    paths = []
    for count in steps:
        for key, tensor in tensors.items():
            if not key.endswith(".alpha"):
                tensors[key] = tensor + change * torch.randn(tensor.shape, generator=generator)
        name = "run.safetensors" if count == steps[-1] else f"run-step{count:08d}.safetensors"
        words = {"ss_steps": str(count), "ss_seed": "1", "ss_training_comment": "mine", **metadata}
        save_file({key: tensor.to(dtype) for key, tensor in tensors.items()}, folder / name, words)
        paths.append(folder / name)
    start.unlink()
    return paths


def averaged(paths, weights):
    loaded = [load_file(path) for path in paths]
    return {key: sum(w * each[key].double() for w, each in zip(weights, loaded, strict=True)) for key in loaded[0]}


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def soup(*words):
    return main(["soup", *map(str, words)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_the_average_in_float64(tmp_path, kind):
    paths, out = run_of(tmp_path, first_file(tmp_path, kind)), tmp_path / "out.safetensors"
    assert soup(*paths, "-o", out) == 0
    result = load_file(out)
    expected = averaged(paths, [1 / 3] * 3)
    assert result.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(result[key], tensor.float(), rtol=1.2e-7, atol=0)  # one rounding
    assert load_file(paths[0]).keys() == result.keys()


def test_weights_by_hand_are_shares(tmp_path):
    paths, out = run_of(tmp_path, first_file(tmp_path)), tmp_path / "out.safetensors"
    assert soup(f"{paths[0]}:0.3", f"{paths[2]}:0.9", "-o", out) == 0
    result = load_file(out)
    for key, tensor in averaged([paths[0], paths[2]], [0.25, 0.75]).items():
        torch.testing.assert_close(result[key], tensor.float(), rtol=1e-6, atol=1e-7)
    assert "weighted by hand" in metadata(out)["ss_training_comment"]


def profile_in_float64(steps, sigma, every):
    """The paper's average by its integral: midpoints of a fine grid, each the snapshot that stands for its time."""
    low, high = -0.999, 1e4
    for _ in range(200):  # sigma_rel falls with gamma
        gamma = (low + high) / 2
        width = math.sqrt(gamma + 1) / (gamma + 2) / math.sqrt(gamma + 3)
        low, high = (gamma, high) if width > sigma else (low, gamma)
    grid = (torch.arange(every, dtype=torch.float64) + 0.5) / every * steps[-1]
    owner = torch.bucketize(grid, torch.tensor(steps, dtype=torch.float64))
    mass = (grid / steps[-1]) ** gamma
    return torch.zeros(len(steps), dtype=torch.float64).index_add_(0, owner, mass / mass.sum()), gamma


@pytest.mark.parametrize("sigma", [0.05, 0.15, 0.28])
def test_the_profile_is_the_papers(tmp_path, sigma):
    steps = (100, 150, 400)  # not evenly: a file stands for the steps since the one before
    paths, out = run_of(tmp_path, first_file(tmp_path), steps), tmp_path / "out.safetensors"
    assert soup(*reversed(paths), "--ema", sigma, "-o", out) == 0
    weights, gamma = profile_in_float64(steps, sigma, 400_000)
    assert power_profile.exponent(sigma) == pytest.approx(gamma, rel=1e-9)
    result = load_file(out)
    for key, tensor in averaged(paths, weights.tolist()).items():
        torch.testing.assert_close(result[key], tensor.float(), rtol=1e-4, atol=1e-5)
    record = json.loads(metadata(out)["hina_average"])
    assert list(record["weights"].values()) == pytest.approx(weights.tolist(), abs=1e-4)


def test_the_recursion_and_the_snapshots_are_one_profile():
    """A file after every step: `shares` are what `decay` leaves of each."""
    gamma, steps = power_profile.exponent(0.1), 60
    kept = [1.0 - power_profile.decay(step, gamma) for step in range(1, steps + 1)]
    for late in range(1, steps):
        kept[:late] = [each * power_profile.decay(late + 1, gamma) for each in kept[:late]]
    assert kept == pytest.approx(power_profile.shares(range(1, steps + 1), gamma), abs=1e-12)
    assert sum(kept) == pytest.approx(1)
    assert power_profile.shares([10, 20, 30], 0) == pytest.approx([1 / 3] * 3)
    mean = sum(step * each for step, each in enumerate(kept, 1)) / steps
    width = math.sqrt(sum((step / steps - mean) ** 2 * each for step, each in enumerate(kept, 1)))
    assert width == pytest.approx(0.1, rel=0.02)  # sigma_rel, but for steps that are no integral


def test_bf16_is_rounded_once(tmp_path):
    start = first_file(tmp_path)
    paths, out = run_of(tmp_path, start, (1, 2, 3, 4, 5, 6, 7), dtype=torch.bfloat16), tmp_path / "out.safetensors"
    assert soup(*paths, "-o", out) == 0
    result = load_file(out)
    for key, tensor in averaged(paths, [1 / 7] * 7).items():
        assert torch.equal(result[key], tensor.bfloat16()), key


def test_metadata_that_all_have_stay_and_say_what_was_done(tmp_path):
    paths, out = run_of(tmp_path, first_file(tmp_path), sshs_model_hash="0" * 64), tmp_path / "out.safetensors"
    assert soup(*paths, "--ema", "0.1", "-o", out) == 0
    found = metadata(out)
    assert found["ss_seed"] == "1"
    assert "ss_steps" not in found  # they differ
    line = "hina-kohya: average of 3 files, run-step00000100.safetensors to run.safetensors, power profile ema=0.1"
    assert found["ss_training_comment"] == f"{line}; mine"
    assert found["sshs_model_hash"] not in ("0" * 64, None)


def test_a_folder_of_a_run_again_and_again(tmp_path, capsys, monkeypatch):
    """A pattern that no shell read; the soup of the first call and a last step that was saved twice are left out."""
    paths = run_of(tmp_path, first_file(tmp_path))
    (tmp_path / "run-step00000300.safetensors").write_bytes(paths[-1].read_bytes())
    monkeypatch.chdir(tmp_path)
    assert soup("*.safetensors", "-o", "soup.safetensors") == 0
    first, said = Path("soup.safetensors").read_bytes(), capsys.readouterr().out
    assert "33.33%  run-step00000100.safetensors, 100 steps" in said
    assert "run-step00000300.safetensors is left out: it is run.safetensors again" in said
    assert soup("*.safetensors", "-o", "soup.safetensors") == 0
    assert "soup.safetensors is left out: it is an average already" in capsys.readouterr().out
    assert Path("soup.safetensors").read_bytes() == first
    assert soup("soup.safetensors:1", "run.safetensors:1", "-o", "both.safetensors") == 0
    for key, tensor in averaged(["soup.safetensors", "run.safetensors"], [0.5, 0.5]).items():
        torch.testing.assert_close(load_file("both.safetensors")[key], tensor.float(), rtol=1.2e-7, atol=0)


def test_other_steps_with_other_weights_are_no_repeat(tmp_path, capsys):
    paths, out = run_of(tmp_path, first_file(tmp_path), (100, 100, 200)), tmp_path / "out.safetensors"
    paths[0] = paths[0].rename(tmp_path / "other.safetensors")
    run_of(tmp_path, first_file(tmp_path), (100, 200), change=0.3)
    assert soup(tmp_path / "other.safetensors", tmp_path / "run-step00000100.safetensors", "-o", out) == 0
    assert capsys.readouterr().out.count("50.00%") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{a}"], "is one file, and an average needs two or more"),
        (["{a}", "{a}"], "is one file, and an average needs two or more; a.safetensors is left out: it is a.safetens"),
        (["{a}", "{gone}"], "there is no file"),
        (["{folder}"], "is a folder"),
        (["{a}", "{other_seed}"], "are not of one run: their factors have a cosine of "),
        (["{a}", "{rank}"], "files of one run, and \"hina-kohya merge\" takes any rank"),
        (["{a}", "{alpha}"], "alpha is not the same in"),
        (["{a}", "{lokr}"], "only; an average needs files of one run"),
        (["{a}", "{b}", "--ema", "0.3"], "--ema 0.3 must be above 0 and at most 0.2887"),
        (["{a}", "{b}", "--ema", "0"], "--ema 0 must be above 0"),
        (["{a}", "{unsaid}", "--ema", "0.1"], "does not say after how many steps it was saved (ss_steps)"),
        (["{a}:1", "{b}:1", "--ema", "0.1"], "there are some by hand; leave out one"),
        (["{a}:1", "{b}"], "has no weight and others have; write"),
        (["{a}:0.5", "{b}:-0.5"], "is -0.5 and must be above 0"),
        (["{a}:0.5", "{b}:0"], "must be finite and not 0"),
        (["{a}", "{cut}"], "is damaged"),
        (["{a}", "{nan}"], "are NaN or infinite"),
        (["{a}", "{model}"], "is no adapter"),
    ],
)  # fmt: skip
def test_what_is_no_run_is_one_line(tmp_path, words, message, capsys):
    made = tmp_path / "made"
    made.mkdir()
    a, b = run_of(made, first_file(made), (100, 200))
    paths = {"a": a.rename(made / "a.safetensors"), "b": b.rename(made / "b.safetensors"), "folder": made}
    for name, more in {"other_seed": {"seed": 5}, "rank": {"lora_dim": 4}, "alpha": {"alpha": 1.0}}.items():
        paths[name] = made / f"{name}.safetensors"
        files.lycoris(paths[name], "lora", metadata={"ss_steps": "300"}, **more)
    paths["lokr"], paths["gone"] = made / "lokr.safetensors", made / "gone.safetensors"
    files.lycoris(paths["lokr"], "lokr")
    tensors = load_file(paths["b"])
    paths |= {name: made / f"{name}.safetensors" for name in ("unsaid", "cut", "nan", "model")}
    save_file(tensors, paths["unsaid"])
    paths["cut"].write_bytes(paths["b"].read_bytes()[:-9])
    key = next(key for key in tensors if "lora_up" in key)
    save_file({**tensors, key: tensors[key] * float("nan")}, paths["nan"])
    save_file({"model.weight": torch.ones(2, 2)}, paths["model"])
    out = tmp_path / "out.safetensors"
    assert soup(*(word.format(**paths) for word in words), "-o", out) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("hina-kohya soup: error: ")
    assert said.err.count("\n") == 1
    assert len(said.err) < 600
    assert [each.name for each in tmp_path.iterdir()] == ["made"]


def test_never_over_an_input(tmp_path, capsys):
    a, b = run_of(tmp_path, first_file(tmp_path), (100, 200))
    before = a.read_bytes()
    assert soup(a, b, "-o", a) == 2
    assert "would be lost" in capsys.readouterr().err
    assert a.read_bytes() == before


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["soup", "--help"])
    assert "hina-kohya soup " in capsys.readouterr().out.partition("examples:")[2]


def test_few_tensors_at_a_time_are_in_memory(tmp_path, monkeypatch):
    """However many files and modules there are."""
    paths = run_of(tmp_path, first_file(tmp_path), range(1, 13))
    live, most, read = weakref.WeakSet(), [], AdapterFile.tensor

    def counted(file, key):
        tensor = read(file, key)
        live.add(tensor)
        most.append(len(live))
        return tensor

    monkeypatch.setattr(AdapterFile, "tensor", counted)
    assert soup(*paths, "-o", tmp_path / "out.safetensors") == 0
    assert len(most) > 12 * 2 * 5
    assert max(most) <= 2


@pytest.mark.slow
def test_kill_while_writing_leaves_the_old_file_whole(tmp_path):
    paths, out = run_of(tmp_path, first_file(tmp_path)), tmp_path / "out.safetensors"
    out.write_bytes(b"what was there before")
    code = f"""
import signal
from hina_kohya.loras import writing
true = writing._data
def slow(key, tensor, layout):
    if "lora_up" in key:
        print("half", flush=True); signal.pause()
    return true(key, tensor, layout)
writing._data = slow
from hina_kohya.cli import main
main(["soup", {", ".join(repr(str(path)) for path in paths)}, "-o", {str(out)!r}])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "half\n"
        child.send_signal(signal.SIGKILL)
    assert out.read_bytes() == b"what was there before"
    assert soup(*paths, "-o", out) == 0
    assert load_file(out)
