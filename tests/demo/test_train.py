"""The embedded trainer from command line to files, on the shipped base model and a few steps."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors import safe_open
from safetensors.torch import load_file

from hina_kohya.cli import main
from hina_kohya.demo import data, report
from hina_kohya.demo.judge import Judge, Verdict
from hina_kohya.demo.model import DigitModel
from hina_kohya.demo.settings import BASE_MODEL
from hina_kohya.trainers import hooks

LOKR = ["--network_dim", "4", "--network_alpha", "2", "--network_args", "algo=lokr", "factor=4", "preset=attn-mlp"]
QUICK = ["--train_batch_size", "4", "--learning_rate", "1e-2", "--judge", "0", *LOKR]


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    """accelerate keeps the first precision of a process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


def train(folder: Path, *argv: str, expect: int = 0) -> dict[str, torch.Tensor]:
    """Run the command; the weights it wrote."""
    code = main(["train", *QUICK, "--output_dir", str(folder), *argv])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert code == expect
    return load_file(folder / "last.safetensors") if expect == 0 else {}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Six steps with everything on; states and weights also after step 3."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    argv = [
        "--max_train_steps",
        "6",
        "--save_every_n_steps",
        "3",
        "--save_state",
        "--logging_dir",
        str(folder / "logs"),
    ]
    return folder, train(
        folder, *argv, "--lr_scheduler", "cosine", "--gradient_accumulation_steps", "2", "--judge", "20"
    )


@pytest.mark.slow
def test_resume_is_bit_exact(whole_run, tmp_path):
    folder, expected = whole_run
    state = folder / "last-step00000003-state"
    settings = ["--max_train_steps", "6", "--lr_scheduler", "cosine", "--gradient_accumulation_steps", "2"]
    resumed = train(tmp_path, *settings, "--resume", str(state))
    assert_equal(resumed, expected)
    # Without the state, the same three last steps end elsewhere: the test can fail.
    other = train(tmp_path / "other", *settings, "--network_weights", str(folder / "last-step00000003.safetensors"))
    assert any(not torch.equal(other[k], expected[k]) for k in expected)


@pytest.mark.slow
def test_an_average_is_saved_beside_each_file_and_resumed_by_the_bit(tmp_path):
    try:
        settings = ["--network_module", "hina_kohya.lycoris", *LOKR[4:], "ema=0.2", "--max_train_steps", "4"]
        train(tmp_path, *settings, "--save_every_n_steps", "2", "--save_state")
        train(tmp_path / "again", *settings, "--resume", str(tmp_path / "last-step00000002-state"))
    finally:
        hooks.uninstall()
    names = {path.name for path in tmp_path.glob("*.safetensors")}
    assert names == {f"{name}{end}.safetensors" for name in ("last", "last-step00000002") for end in ("", "-ema")}
    average, plain = (load_file(tmp_path / f"last{end}.safetensors") for end in ("-ema", ""))
    assert any(not torch.equal(average[key], plain[key]) for key in plain)
    assert_equal(load_file(tmp_path / "again" / "last-ema.safetensors"), average)


@pytest.mark.slow
def test_resume_of_a_finished_or_foreign_run_is_refused(whole_run, tmp_path, capsys):
    folder, _ = whole_run
    done = ["--max_train_steps", "6", "--resume"]
    train(tmp_path, *done, str(folder / "last-state"), expect=2)
    assert "must exceed the 6 steps" in capsys.readouterr().err
    train(tmp_path, *done, str(folder), expect=2)
    assert "has no train_state.json" in capsys.readouterr().err
    train(tmp_path, *done, str(folder / "last-step00000003-state"), "--network_dim", "2", expect=2)
    assert "does not fit network_args" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.slow
def test_metadata_is_what_sd_scripts_writes(whole_run):
    folder, _ = whole_run
    with safe_open(folder / "last.safetensors", "pt") as file:
        found = file.metadata()
    assert found["ss_network_module"] == "lycoris.kohya"
    assert json.loads(found["ss_network_args"]) == {"algo": "lokr", "factor": "4", "preset": "attn-mlp"}
    assert found["ss_network_dim"] == "4"
    assert found["ss_network_alpha"] == "2.0"
    assert found["ss_optimizer"] == "torch.optim.adamw.AdamW"
    assert found["ss_learning_rate"] == "0.01"
    assert found["ss_unet_lr"] == "None"
    assert found["ss_steps"] == "6"
    assert found["ss_seed"] == "42"
    assert found["ss_total_batch_size"] == "8"
    assert float(found["ss_training_started_at"]) <= float(found["ss_training_finished_at"])
    assert found["sshs_model_hash"]  # by LyCORIS itself


@pytest.mark.slow
def test_pictures_summary_and_curves(whole_run):
    folder, _ = whole_run
    for picture in ("samples.png", "loss.png"):
        pixels = matplotlib.image.imread(folder / picture)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02  # not blank
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 6
    assert set(summary["seconds"]) == {"set_up", "training", "sampling", "judging"}
    assert summary["judged"]["taught"]["digits"] == [8, 9]
    assert summary["judged"]["kept"]["digits"] == list(range(8))
    assert summary["judged"]["kept"]["before"]["images"] == 20
    assert summary["versions"]["torch"] == torch.__version__
    assert list((folder / "logs").rglob("events.out.tfevents*"))
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]  # no unfinished files


@pytest.mark.slow
def test_step_files(whole_run):
    folder, final = whole_run
    halfway = load_file(folder / "last-step00000003.safetensors")
    assert halfway.keys() == final.keys()
    assert any(not torch.equal(halfway[k], final[k]) for k in final)
    assert json.loads((folder / "last-state" / "train_state.json").read_text())["current_step"] == 6


@pytest.mark.slow
def test_the_seed_decides(tmp_path):
    first = train(tmp_path / "a", "--max_train_steps", "1")
    assert_equal(first, train(tmp_path / "b", "--max_train_steps", "1"))
    other = train(tmp_path / "c", "--max_train_steps", "1", "--seed", "1")
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.slow
def test_learning_rates_choose_what_is_trained(tmp_path):
    names = train(tmp_path, "--max_train_steps", "1", "--network_train_unet_only")
    assert {n.split("_")[1] for n in names} == {"unet"}
    train(tmp_path, "--learning_rate", "0", expect=2)


@pytest.mark.slow
def test_full_bf16(tmp_path):
    weights = train(tmp_path, "--max_train_steps", "2", "--mixed_precision", "bf16", "--full_bf16")
    assert {w.dtype for n, w in weights.items() if "lokr" in n} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("given", ["algo=lora", "algo=loha"])
def test_other_algorithms_and_hina_adamw(tmp_path, given):
    argv = ["--network_args", given, "preset=attn-mlp", "--optimizer_type", "HinaAdamW"]
    before, after = (train(tmp_path, "--max_train_steps", n, *argv) for n in ("1", "3"))
    assert any(not torch.equal(before[k], after[k]) for k in after)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--network_module", "no.such"], "cannot be imported"),
        (["--network_module", "json"], "has no create_network"),
        (["--network_args", "algo=lokrr"], "refused dim 4"),
        (["--network_args", "algo"], "must be name=value"),
        (["--network_args", "algo=lokr", "preset=full"], "preset=attn-mlp"),
        (
            ["--network_args", "algo=lokr", "stop_after=3"],
            "stop_after=3 needs images that are held out, and there are none: give --validation_split 0.1",
        ),
        ([*LOKR[4:], "held_out=a.toml"], "holds images out by itself; give --validation_split 0.1 in the place"),
        (["--validation_split", "0.001"], "0 of 283 images would be held out; give at least 0.0036"),
        (["--validation_split", "1"], "and less than 1"),
        (
            [*LOKR[4:], "ema=0.1"],
            "ema=0.1 is not for lycoris.kohya by itself; write network_module hina_kohya.lycoris",
        ),
        (["--optimizer_type", "HinaAdam"], "did you mean HinaAdamW?"),
        (["--optimizer_args", "eps=tiny"], "eps='tiny'"),
        (["--pretrained_model_name_or_path", "tests"], "is no base model"),
        pytest.param(
            ["--mixed_precision", "fp16"],
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_be_built_is_said_before_training(tmp_path, capsys, argv, said):
    train(tmp_path, *argv, expect=2)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_diverged_run_overwrites_nothing(tmp_path, capsys):
    good = train(tmp_path, "--max_train_steps", "1")
    argv = ["--optimizer_type", "SGD", "--learning_rate", "1e30", "--max_grad_norm", "0", "--max_train_steps", "9"]
    train(tmp_path, *argv, expect=1)
    assert "no file was overwritten" in capsys.readouterr().err
    assert_equal(load_file(tmp_path / "last.safetensors"), good)


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    argv = [*QUICK, "--output_dir", str(tmp_path), "--max_train_steps", "100000"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hina_kohya.cli", "train", *argv], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    for line in process.stdout:  # the first progress line: the loop is running
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait(timeout=60) == 130
    command = shlex.split(said.splitlines()[-1])
    assert command[:2] == ["hina-kohya", "train"]
    state = json.loads((tmp_path / "last-state" / "train_state.json").read_text())
    assert f"stopped after step {state['current_step']}" in said
    # The command goes on from there: one step more is enough to see it.
    command[command.index("--max_train_steps") + 1] = str(state["current_step"] + 1)
    assert main(command[1:]) == 0
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == str(state["current_step"] + 1)


def test_the_data_order_visits_every_image_once_an_epoch():
    images = data.DigitImages([8, 9], seed=1)
    size = 7
    rows = torch.cat([images._rows(i, size) for i in range(3 * len(images))])
    for epoch in rows[: 6 * len(images)].split(len(images)):
        assert sorted(epoch.tolist()) == list(range(len(images)))
    assert torch.equal(images._rows(5, size), images._rows(5, size))
    assert not torch.equal(images.batch(0, size).noise, images.batch(1, size).noise)


def test_few_shot_runs_use_the_first_images():
    assert len(data.DigitImages([8, 9], seed=0, num_images=3)) == 6


class TestBaseModel:
    """What ships is small, and is what its metrics say."""

    def test_size(self):
        files = [p for p in BASE_MODEL.rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in files) < 4 * 2**20
        weights = [load_file(p) for p in files if p.suffix == ".safetensors"]
        assert len(weights) == 2
        assert {w.dtype for part in weights for n, w in part.items() if "position_ids" not in n} == {torch.float16}

    def test_metrics(self):
        metrics = json.loads((BASE_MODEL / "metrics.json").read_text())["metrics"]
        assert metrics["judge_held_out_accuracy"] > 0.98
        assert metrics["digits_0_to_7"]["accuracy"] >= 0.85
        assert metrics["digits_8_and_9"]["accuracy"] <= 0.2

    @pytest.mark.slow
    def test_it_draws_what_it_knows_and_not_what_it_does_not(self):
        model, judge = DigitModel.load().freeze(), Judge()
        assert report.draw(model, judge, list(range(8)), 40, seed=7).verdict().accuracy >= 0.8
        assert report.draw(model, judge, [8, 9], 20, seed=7).verdict().accuracy <= 0.3

    def test_every_word_is_one_token(self):
        tokenizer = DigitModel.load().tokenizer
        for digit in range(10):
            text = data.caption(digit)
            assert len(tokenizer.tokenize(text)) == len(text.split())


def test_the_judge_is_not_fooled_by_a_wrong_caption():
    _, _, images, labels = data.load_digits()
    read = Judge().read(torch.from_numpy(images))
    assert Verdict.of(labels, read).accuracy > 0.98
    assert Verdict.of((labels + 1) % 10, read).accuracy < 0.02


class TestRefusals:
    """Before a step is made, in one line."""

    def refused(self, capsys, *argv):
        code = main(["train", *QUICK, *argv])
        said = capsys.readouterr().err.strip().splitlines()
        assert (code, len(said)) == (2, 1)
        return said[0]

    def test_an_output_folder_that_cannot_be_written(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        said = self.refused(capsys, "--output_dir", str(tmp_path / "file" / "out"))
        assert "output_dir" in said
        assert "cannot be written" in said

    def test_a_damaged_adapter(self, tmp_path, capsys):
        (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
        words = ["--output_dir", str(tmp_path / "out"), "--network_weights", str(tmp_path / "bad.safetensors")]
        assert "is damaged or no .safetensors file" in self.refused(capsys, *words)

    @pytest.mark.slow
    def test_a_damaged_state(self, tmp_path, capsys):
        state = tmp_path / "last-state"
        state.mkdir()
        words = ["--output_dir", str(tmp_path / "out"), "--resume", str(state)]
        for content in ("", "{}", '{"current_step": "x", "losses": 1, "settings": {}}'):
            (state / "train_state.json").write_text(content)
            assert "train_state.json is damaged" in self.refused(capsys, *words)
        assert not list((tmp_path / "out").rglob("*.safetensors"))

    def test_a_damaged_base_model(self, tmp_path, capsys):
        model = tmp_path / "model"
        shutil.copytree(BASE_MODEL, model)
        for weights in model.rglob("*.safetensors"):
            weights.write_bytes(weights.read_bytes()[:100])
        words = ["--output_dir", str(tmp_path / "out"), "--pretrained_model_name_or_path", str(model)]
        assert "is no base model" in self.refused(capsys, *words)
