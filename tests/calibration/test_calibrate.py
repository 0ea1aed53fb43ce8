"""`hina-kohya resize --calibrate RUN`: the run's own trainer gathers the metric, and nothing is learnt or kept."""

import os
import sys

import pytest
import toml
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hina_kohya.calibration import EMBEDDED, inside, plan
from hina_kohya.calibration.still import Still
from hina_kohya.cli import main
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.metric import beside
from hina_kohya.trainers import calibrating, hooks
from hina_kohya.trainers.network_args import OURS
from tests.support import lora_files as files
from tests.support import runs
from tests.support.children import VENV
from tests.support.inside import DOUBLE, HARMLESS

RUN = {
    "model": {"pretrained_model_name_or_path": "model.safetensors", "train_data_dir": "images"},
    "network": {"network_module": "lycoris.kohya", "network_dim": 4, "network_alpha": 1,
                "network_args": ["algo=lora", "preset=attn-mlp", "rank_dropout=0.5", *(f"{name}=1" for name in OURS)],
                "network_dropout": 0.1},
    "training": {"optimizer_type": "Prodigy", "optimizer_args": ["d_coef=2"], "lr_scheduler": "cosine",
                 "lr_warmup_steps": 100, "max_train_steps": 500, "save_every_n_epochs": 1, "sample_prompts": "p.txt",
                 "learning_rate": 1.0, "save_state": True, "resume": "state", "unet_lr": 1e-3},
}  # fmt: skip


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A LoRA that the double of sd-scripts trained, in a folder with the TOML of its run."""
    report = runs.Double().train(tmp_path, runs.Request(network_args=("algo=lora",), steps=4, lr="1e-1"))
    assert report.rc == 0, report.log[-2000:]
    config = {key: value for section in RUN.values() for key, value in section.items()
              if key in ("network_module", "network_dim", "network_alpha", "network_args", "network_dropout",
                         "optimizer_type", "optimizer_args", "lr_scheduler", "lr_warmup_steps", "max_train_steps",
                         "learning_rate")}  # fmt: skip
    config |= {"train_data_dir": "images", "output_dir": str(tmp_path / "kept"), "save_state": True, "seed": 42}
    (tmp_path / "run.toml").write_text(toml.dumps({"all": config}), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, value in {**HARMLESS, "PYTHONPATH": os.pathsep.join(map(str, (runs.ROOT, DOUBLE, VENV)))}.items():
        monkeypatch.setenv(name, value)
    return report.weights


def resized(adapter, *words):
    return main(["resize", str(adapter), "--size", "50%", "-o", "small.safetensors", *words])


CALIBRATE = ("--calibrate", "run.toml", "--sd-scripts", str(DOUBLE), "--calibrate-steps", "5")


@pytest.mark.slow
def test_the_run_gathers_and_changes_nothing(trained, capfd):
    before = trained.read_bytes()
    assert resized(trained, *CALIBRATE) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "5 steps of train_network.py" in said
    assert "by 5 samples of data" in said  # its loader has one a batch
    metric = beside(trained)
    assert f"{metric} stays: for another size leave --calibrate away" in said
    assert trained.read_bytes() == before
    assert not (trained.parent / "kept").exists()
    found, modules = load_file(metric), {key.partition(".")[0] for key in load_file(trained)}
    assert {key.rpartition(".")[0] for key in found} == modules
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert any(float(tensor.trace()) > 0 for name, tensor in found.items() if name.endswith(".up"))
    # Once more, at once, and without a trainer: the same file to the byte, and another one than by the weights.
    small = (trained.parent / "small.safetensors").read_bytes()
    assert resized(trained, "--calibrate", str(metric)) == 0
    assert (trained.parent / "small.safetensors").read_bytes() == small
    capfd.readouterr()
    assert resized(trained) == 0
    assert f"by {metric}, which lies beside it" in capfd.readouterr().out
    assert (trained.parent / "small.safetensors").read_bytes() == small
    metric.rename(metric.with_name("elsewhere"))
    assert resized(trained) == 0
    assert "by the weights alone" in capfd.readouterr().out
    assert (trained.parent / "small.safetensors").read_bytes() != small


def test_a_metric_that_is_not_of_the_file_is_not_used_and_said(tmp_path, capsys):
    files.plain(tmp_path / "a.safetensors", {"lora_unet_x": (6, 5)})
    (tmp_path / "a.metric.safetensors").write_bytes(b"damaged")
    words = ["--rank", "1", "-o", str(tmp_path / "o.safetensors")]
    assert main(["resize", str(tmp_path / "a.safetensors"), *words]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'a.metric.safetensors'} is not used: " in said
    assert "by the weights alone" in said
    assert main(["merge", str(tmp_path / "a.safetensors"), "-o", str(tmp_path / "o.safetensors")]) == 0
    assert "not used" not in capsys.readouterr().out, "merge keeps everything, whatever a metric says"


@pytest.mark.slow
def test_a_run_of_another_network_leaves_nothing(trained, capfd):
    other = trained.parent / "other.safetensors"
    tensors = {f"lora_unet_{key}": tensor for key, tensor in load_file(trained).items()}
    save_file(tensors, other)
    assert resized(other, *CALIBRATE) == 2
    said = capfd.readouterr().err
    assert "the network that is trained has no lora_unet_lora_" in said
    assert "ended with code 2" in said
    assert "Traceback" not in said
    assert not beside(other).exists()
    assert not (trained.parent / "small.safetensors").exists()


def test_what_is_wrong_is_said_before_a_trainer_starts(trained, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", None)
    missing = ["--calibrate", "none.toml", "--sd-scripts", str(DOUBLE)]
    for words, message in [
        ([*CALIBRATE, "--calibrate-steps", "0"], "--calibrate-steps 0 must be at least 1"),
        (missing, "none.toml"),
        ([*CALIBRATE, "--script", "wrong_train_network.py"], "wrong_train_network.py"),
        ([*CALIBRATE, "-o", str(trained)], "would be lost"),
    ]:
        assert resized(trained, *words) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert resized(f"{trained}:0.5", *CALIBRATE) == 2
    assert "is about one adapter at weight 1" in capsys.readouterr().err
    monkeypatch.delenv("SD_SCRIPTS_HOME", raising=False)
    assert resized(trained, "--calibrate", "run.toml") == 2
    assert "add --sd-scripts PATH" in capsys.readouterr().err


def test_a_dora_is_refused(tmp_path, capsys):
    tensors = {"lora_unet_x.lora_down.weight": torch.randn(2, 6), "lora_unet_x.lora_up.weight": torch.randn(5, 2),
               "lora_unet_x.alpha": torch.tensor(2.0), "lora_unet_x.dora_scale": torch.ones(5, 1)}  # fmt: skip
    save_file(tensors, tmp_path / "dora.safetensors")
    words = ["--rank", "1", "-o", str(tmp_path / "o.safetensors"), "--calibrate", str(tmp_path / "run.toml")]
    assert main(["resize", str(tmp_path / "dora.safetensors"), *words]) == 2
    assert "is a DoRA" in capsys.readouterr().err


# The plan


def test_the_run_is_the_user_s_but_for_what_would_be_learnt_kept_or_dropped(tmp_path):
    config = tmp_path / "run.toml"
    config.write_text(toml.dumps(RUN), encoding="utf-8")
    made = plan.plan_of(config, str(DOUBLE))
    assert made.script == str(DOUBLE / "train_network.py")
    with made.words(tmp_path / "a.safetensors", 7) as (script, option, file):
        assert (script, option) == (made.script, "--config_file")
        written = toml.load(file)
    assert not os.path.exists(file)
    kept = {"pretrained_model_name_or_path", "train_data_dir", "network_module", "network_dim", "network_alpha",
            "network_args", "learning_rate", "unet_lr"}  # fmt: skip
    own = {"network_weights", "max_train_steps", "optimizer_type", "output_dir", "output_name"}
    assert written.keys() == kept | own
    assert written["network_args"] == ["algo=lora", "preset=attn-mlp"]
    assert written["max_train_steps"] == 7
    assert written["network_weights"] == str(tmp_path / "a.safetensors")


def test_a_command_line_in_a_script_is_a_run_too(tmp_path):
    script = tmp_path / "run.sh"
    script.write_text(
        f"accelerate launch {DOUBLE}/train_network.py --network_module lycoris.kohya --network_dim 8 "
        "--train_data_dir images --optimizer_type AdamW --lr_warmup_steps 3\n"
    )
    made = plan.plan_of(script, str(DOUBLE))
    assert made.values == {
        "network_module": "lycoris.kohya", "network_dim": 8, "train_data_dir": "images", "optimizer_type": "AdamW"
    }  # fmt: skip


def test_a_run_without_model_and_images_is_the_embedded_trainer_s():
    made = plan.plan_of(runs.ROOT / "configs" / "training" / "digits_lokr.toml")
    assert made.script == EMBEDDED
    assert made.values["digits"] == [8, 9]


@pytest.mark.slow
def test_the_embedded_trainer(tmp_path, monkeypatch, capfd):
    pytest.importorskip("diffusers")
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))
    config = tmp_path / "digits.toml"
    run = {"digits": [8], "train_batch_size": 4, "network_dim": 2, "network_alpha": 2, "max_train_steps": 2,
           "network_args": ["algo=lora", "preset=attn-mlp"], "learning_rate": 1e-2, "judge": 0,
           "output_dir": str(tmp_path / "out"), "output_name": "two"}  # fmt: skip
    config.write_text(toml.dumps(run))
    assert main(["train", "--config_file", str(config)]) == 0
    adapter = tmp_path / "out" / "two.safetensors"
    words = ["--rank", "1", "-o", str(tmp_path / "one.safetensors"), "--calibrate", str(config)]
    assert main(["resize", str(adapter), *words, "--calibrate-steps", "2"]) == 0, capfd.readouterr().err
    assert "by 8 samples of data" in capfd.readouterr().out


# Within the trainer


class Module(nn.Module):
    def __init__(self, name, layer, is_listed):
        super().__init__()
        self.lora_name, self.org_module = name, [layer] if is_listed else layer


@pytest.mark.parametrize("is_listed", [True, False], ids=["LyCORIS", "sd-scripts"])
def test_layers_are_found_before_the_network_is_put_on(is_listed):
    network, layers = nn.Module(), [nn.Linear(2, 3), nn.Linear(3, 2)]
    network.unet_loras = [Module("lora_unet_a", layers[0], is_listed)]
    network.text_encoder_loras = [Module("lora_te_b", layers[1], is_listed)]
    assert calibrating.layers_of(network) == {"lora_unet_a": layers[0], "lora_te_b": layers[1]}


def test_each_network_is_shown_to_observers_until_the_hooks_are_off(monkeypatch):
    module = type(sys)("some_networks")
    module.create_network = lambda *args, **kwargs: nn.Linear(1, 1)
    monkeypatch.setitem(sys.modules, "some_networks", module)
    seen = []
    try:
        hooks.observe(seen.append)
        made = hooks.network_module("some_networks").create_network()
        assert seen == [made]
    finally:
        hooks.uninstall()
    hooks.install()
    try:
        hooks.network_module("some_networks").create_network()
        assert seen == [made]
    finally:
        hooks.uninstall()


def test_no_network_is_no_metric(tmp_path):
    with pytest.raises(AdapterError, match="made no network"):
        inside.Watch(tmp_path / "a.safetensors").save(tmp_path / "m.safetensors")


def test_still_takes_everything_and_moves_nothing():
    param = nn.Parameter(torch.ones(2))
    optimizer = Still([{"params": [param], "lr": 1.0}], lr=0.5, betas=(0.9, 0.99), d_coef=2)
    assert optimizer.step(lambda: param.sum().backward() or 3.0) == 3.0
    assert param.tolist() == [1, 1]
    assert optimizer.step() is None
