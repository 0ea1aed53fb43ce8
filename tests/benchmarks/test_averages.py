"""benchmarks.averages: the greedy soup takes what helps and nothing else; the table says what the runs were."""

import torch
from safetensors.torch import load_file, save_file

from benchmarks.averages import LAST, greedy, table
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
    runs = {"cosine": {"1": {"ema": 0.9, LAST: 1.0}, "2": {"ema": 1.0, LAST: 2.0}, "3": {"ema": 3.3, LAST: 3.0}}}
    rows = table(runs).splitlines()
    assert rows[2] == f"| {LAST}, held-out loss | 2.0000 |"
    assert rows[3] == "| ema | -16.67 % ± 17.64, 2 of 3 |"
