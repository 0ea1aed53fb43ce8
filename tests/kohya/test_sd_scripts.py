"""The real, unmodified train_network.py with `--optimizer_type hina_kohya.HinaAdamW` and the others of the family.

Needs a checkout of sd-scripts in SD_SCRIPTS_HOME and the harness of this project's developers (HINA_HARNESS, default
../shared/harness, set up by its README); skipped where there is none.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
HARNESS = Path(os.environ.get("HINA_HARNESS", ROOT.parent / "shared" / "harness"))
VENV = Path(os.environ.get("HARNESS_DIR", Path.home() / ".cache" / "hina-harness")) / "venv"

pytestmark = pytest.mark.skipif(
    not (os.environ.get("SD_SCRIPTS_HOME") and (HARNESS / "run_tiny.py").exists() and VENV.exists()),
    reason="needs SD_SCRIPTS_HOME and the harness",
)


def train(out, *arguments, extra=()):
    command = [sys.executable, HARNESS / "run_tiny.py", "--out", out, "--pythonpath", ROOT, "--timeout", "400"]
    arguments = (
        arguments if "--optimizer_type" in arguments else ("--optimizer_type", "hina_kohya.HinaAdamW", *arguments)
    )
    command += [*arguments, *(["--", *extra] if extra else [])]
    run = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    report = json.loads(run.stdout)
    assert report["rc"] == 0, report.get("tail")
    line = re.sub(r"\s+", " ", Path(report["log"]).read_text(errors="replace"))
    return report, line


def lycoris(*arguments):
    return ("--network_module", "lycoris.kohya", "--network_args", "preset=attn-mlp", *arguments)


NETWORKS = {
    "networks.lora": (("--network_module", "networks.lora"), r"lora (\d+) modules, (\d+) pairs", True),
    "lora": (lycoris("algo=lora"), r"lora (\d+) modules, (\d+) pairs", True),
    "loha": (lycoris("algo=loha"), r"loha (\d+) modules, (\d+) pairs", False),
    "lokr": (lycoris("algo=lokr", "factor=4"), r"lokr (\d+) modules, (\d+) Kronecker pairs", True),
    "full": (lycoris("algo=full"), r"full (\d+) modules()", None),
    "dora": (lycoris("algo=lora", "dora_wd=True"), r"lora (\d+) modules, (\d+) pairs", True),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name, tmp_path):
    arguments, pattern, one_pair_a_module = NETWORKS[name]
    report, log = train(tmp_path, "--steps", "3", *arguments)
    found = re.search(pattern, log)
    assert found, log[-1000:]
    modules, pairs = found.groups()
    if one_pair_a_module is not None:
        assert int(pairs) == int(modules) * (1 if one_pair_a_module else 2)
    assert "0 regular, 0 unnamed" in log
    assert report["meta"]["ss_optimizer"].startswith("hina_kohya.optim.hina_adamw.HinaAdamW")
    assert len(report["losses"]) == 3


def test_save_and_resume_restore_the_state(tmp_path):
    lokr = lycoris("algo=lokr", "factor=4")
    train(tmp_path / "a", "--steps", "4", *lokr, "--save_state")
    saved = tmp_path / "a" / "lora-state"
    before = torch.load(saved / "optimizer.bin", weights_only=True)
    assert {entry["step"] for entry in before["state"].values()} == {4}
    assert before["state"][0]["muon.exp_avg"].dtype == torch.int8
    # one step at lr 0: the moments move on from what was saved, the counters go to 5
    train(tmp_path / "b", "--steps", "5", *lokr, "--save_state", "--resume", saved, extra=["--skip_until_initial_step"])
    after = torch.load(tmp_path / "b" / "lora-state" / "optimizer.bin", weights_only=True)
    assert {entry["step"] for entry in after["state"].values()} == {5}
    assert after["param_groups"][0]["param_names"] == before["param_groups"][0]["param_names"]


def test_full_bf16(tmp_path):
    lokr = lycoris("algo=lokr", "factor=4")
    report, _ = train(
        tmp_path, "--steps", "3", *lokr, "--save_state", extra=["--full_bf16", "--mixed_precision", "bf16"]
    )
    state = torch.load(tmp_path / "lora-state" / "optimizer.bin", weights_only=True)["state"][0]
    assert state["muon.exp_avg.scale"].dtype == torch.float32
    assert len(report["losses"]) == 3


@pytest.mark.parametrize("network", ["networks.lora", "lokr"])
@pytest.mark.parametrize(
    "cls", ["AdaptiveHinaAdamW", "AutomagicCameAMP", "AutomagicCameAMP8bit", "COptim", "COptim8bit"]
)
def test_every_class_trains_resumes_and_takes_bf16(cls, network, tmp_path):
    arguments, pattern, _ = NETWORKS[network]
    chosen = ("--optimizer_type", f"hina_kohya.{cls}", *arguments)
    report, log = train(tmp_path / "a", "--steps", "4", *chosen, "--save_state")
    assert re.search(pattern, log), log[-1000:]
    assert report["meta"]["ss_optimizer"].split("(")[0].endswith(f".{cls}")
    saved = tmp_path / "a" / "lora-state"
    again = ["--skip_until_initial_step"]
    report, _ = train(tmp_path / "b", "--steps", "6", *chosen, "--save_state", "--resume", saved, extra=again)
    assert len(report["losses"]) == 2  # not to the bit those of an unbroken run: sd-scripts draws other noise
    before, after = (torch.load(tmp_path / run / "lora-state" / "optimizer.bin", weights_only=True) for run in "ab")
    assert [{entry["step"] for entry in each["state"].values()} for each in (before, after)] == [{4}, {6}]
    kinds = [{i: {key: (value.shape, value.dtype) for key, value in entry.items() if key != "step"}
              for i, entry in each["state"].items()} for each in (before, after)]  # fmt: skip
    assert kinds[0] == kinds[1]
    report, _ = train(tmp_path / "c", "--steps", "3", *chosen, extra=["--full_bf16", "--mixed_precision", "bf16"])
    assert len(report["losses"]) == 3


def test_accelerate_launch(tmp_path):
    train(tmp_path, "--steps", "3", "--launcher", "accelerate", *lycoris("algo=lokr", "factor=4"))


def test_two_ranks_have_the_same_bits(tmp_path):
    train(
        tmp_path, "--steps", "4",
        "--optimizer_type", "tests.support.rank_probe.Probe", "--optimizer_args", "state='bf16'",
        "--launcher", "torchrun", "--num-processes", "2", "--env", f"PROBE_FOLDER={tmp_path}",
        *lycoris("algo=lokr", "factor=4"),
    )  # fmt: skip
    first, second = ((tmp_path / f"rank{rank}.txt").read_text().split() for rank in (0, 1))
    assert first == second
    assert len(set(first)) == 4


def test_bad_argument_stops_before_training(tmp_path):
    command = [sys.executable, HARNESS / "run_tiny.py", "--out", tmp_path, "--pythonpath", ROOT]
    command += ["--optimizer_type", "hina_kohya.HinaAdamW", "--optimizer_args", "use_catious=True"]
    report = json.loads(subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False).stdout)
    assert report["rc"] != 0
    assert "unknown argument 'use_catious'; did you mean use_cautious" in report["tail"]
