"""benchmarks.averages: the greedy soup takes what helps and nothing else; the table says what the runs were."""

import dataclasses

import torch
from safetensors.torch import load_file, save_file

from benchmarks.averages.__main__ import main
from benchmarks.averages.report import table
from benchmarks.averages.runs import BEST, LAST, Store, arms, greedy, run_of
from benchmarks.averages.trainings import Digits
from tests.support import lora_files as files


def test_the_greedy_soup_takes_what_helps(tmp_path):
    """Two files whose errors cancel, and one beside the path."""
    path = tmp_path / "target.safetensors"
    target = files.plain(path, {"lora_unet_x": (6, 5)})
    error = {key: torch.randn(tensor.shape) * 0.1 for key, tensor in target.items() if "lora" in key.partition(".")[2]}
    paths = []
    for number, (name, share) in enumerate({"left": 1.0, "right": -0.9, "off": 4.0}.items()):
        tensors = {key: tensor + share * error.get(key, 0) for key, tensor in target.items()}
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(tensors, paths[-1], {"ss_steps": str(number + 1)})

    def distance(file):
        found = load_file(file)
        return sum(float((found[key] - target[key]).square().sum()) for key in error)

    best = greedy({path: distance(path) for path in paths}, distance, tmp_path / "candidates")
    assert distance(best) < 0.01 * distance(tmp_path / "right.safetensors")
    middle = {key: target[key] + 0.05 * error[key] for key in error}
    for key, tensor in middle.items():
        torch.testing.assert_close(load_file(best)[key], tensor)


def test_the_table():
    settings = {"cosine": {"1": {LAST: 1.0, "ema": 0.9}, "2": {LAST: 2.0, "ema": 1.0}, "3": {LAST: 3.0, "ema": 3.3}}}
    rows = table(settings).splitlines()
    assert rows[2] == f"| {LAST}, held-out loss | 2.0000 |"
    assert rows[3] == "| ema | -16.67 % ± 17.64, 2 of 3 |"
    assert table({"cosine": {"1": settings["cosine"]["1"]}}).splitlines()[3] == "| ema | -10.00 %, 1 of 1 |"


def test_each_arm_is_judged_by_its_own_weights(tmp_path):
    """The last file's loss is that of the weights as training left them, and every average differs from it."""
    training = Digits(1, 20, "--lr_scheduler constant_with_warmup --num_images 12", tmp_path)
    losses = arms(training, 20, tmp_path)
    training.load(tmp_path / "step0020.safetensors")
    assert training.loss("judges") == losses[LAST]
    assert training.loss("chooses") != losses[LAST]
    others = {name: loss for name, loss in losses.items() if name not in (LAST, BEST, "greedy soup")}
    assert len({losses[LAST], *others.values()}) == 6


def test_finished_runs_are_kept(tmp_path, capsys):
    words = ["--quick", "--runs", str(tmp_path), "--results", str(tmp_path), "--jobs", "0"]
    run = run_of("12 images of each digit, constant rate", 101)
    record = dataclasses.asdict(run) | {
        "losses": {LAST: 1.0, "soup": 0.5},
        "seconds": 1.0, "load": 0.0, "code": "other", "protocol": 1,
    }  # fmt: skip
    Store(tmp_path / "runs.jsonl").add(record)
    assert main([*words, "--report"]) == 0
    page = (tmp_path / "averages_quick.md").read_text(encoding="utf-8")
    assert "| soup | -50.00 %, 1 of 1 |" in page
    assert "1 runs were made by other code of ours" in page
