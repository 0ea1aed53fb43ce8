"""What the original document prints runs as printed, but for the import: its Python, its configuration, its options."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hina_kohya.adlrns import ADLRNSTrainer, CompressedModel, DynamicLowRankLayer, adlrns_resnet, compress
from hina_kohya.adlrns.layer import images, training
from hina_kohya.adlrns.layer import perf as perf_module
from hina_kohya.adlrns.settings import Settings
from hina_kohya.cli import main

BASIC = """
import torch
from hina_kohya.adlrns import DynamicLowRankLayer, RankScheduler, PerfEstimator

layer = DynamicLowRankLayer(
    in_features=512,
    out_features=256,
    r_max=64,
    r_min=4
)

scheduler = RankScheduler('energy_aware', r_min=4, r_max=64)

perf_estimator = PerfEstimator({
    'gpu_cores': 5120,
    'memory_bandwidth': 1e12
})

input_tensor = torch.randn(32, 512)
output, current_rank = layer(input_tensor, budget=5.0)

print(f"输出形状: {output.shape}")
print(f"当前秩: {current_rank}")
"""
TRAINING = """
from hina_kohya.adlrns.trainers import ADLRNSTrainer
import yaml

with open('experiments/exp_config.yaml', 'r') as f:
    config = yaml.safe_load(f)

trainer = ADLRNSTrainer(model, config, device, save_dir='./checkpoints')

training_history = trainer.train(train_loader, val_loader, num_epochs=100)
"""
CONFIG = """
model:
  type: adlrns_resnet
  r_min: 4
  r_max: 64
  scorer_hidden: 32
  num_gate_blocks: 8

train:
  batch_size: 64
  epochs: 100
  lr: 1e-4
  energy_penalty_weight: 0.01

scheduler:
  type: energy_aware
  energy_budget_mJ_per_sample: 5.0
  alpha: 1.0
  beta: 0.1

hardware:
  gpu_type: V100
  flops_per_mac: 2
  energy_per_flop: 1e-6
"""
UNGATED = {"scorer_hidden": 0, "num_gate_blocks": 0}


@pytest.fixture(autouse=True)
def nothing_measures_energy(tmp_path, monkeypatch):
    (tmp_path / "no counter").mkdir()
    monkeypatch.setattr(perf_module, "POWERCAP", tmp_path / "no counter")


def digits(first, last):
    """(images [N, 1, 8, 8], classes) of scikit-learn's handwritten digits."""
    data = load_digits()
    images = torch.from_numpy(data.images[first:last]).float()[:, None] / 16
    return TensorDataset(images, torch.from_numpy(data.target[first:last]).long())


def resnet(**more):
    torch.manual_seed(0)
    keys = {key: value for key, value in yaml.safe_load(CONFIG)["model"].items() if key != "type"}
    return adlrns_resnet(10, channels=1, image_size=8, **{**keys, **more})


def test_the_basic_use(capsys):
    names = {}
    with pytest.warns(UserWarning, match="nothing follows from gpu_cores = 5120 without base_frequency") as warned:
        exec(BASIC, names)
    assert len(warned) == 1
    assert "torch.Size([32, 256])" in capsys.readouterr().out
    assert 4 <= names["current_rank"] <= 8.5  # 5 percent of the dense multiply-adds: rank 8.53
    estimate = names["perf_estimator"].estimate(names["layer"], names["input_tensor"], repeats=1)
    assert estimate.modelled_ms == pytest.approx(1e3 * estimate.bytes / 1e12)
    assert names["scheduler"](torch.ones(6, 64), 1.0, torch.ones(6), 10.0).double().mean() == 10


@pytest.mark.slow
def test_the_training_with_a_yaml_file(tmp_path, monkeypatch):
    """In all of its 100 epochs, on real images; the energy is that of the file's factor."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "exp_config.yaml").write_text(CONFIG, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {
        "model": resnet(widths=(16, 32)),
        "device": torch.device("cpu"),
        "train_loader": DataLoader(digits(0, 128), batch_size=64, shuffle=True),
        "val_loader": DataLoader(digits(1000, 1064), batch_size=64),
    }
    with pytest.warns(UserWarning, match="of the configuration:") as warned:
        exec(TRAINING, names)
    assert len(warned) == 1
    history = names["training_history"]
    assert len(history) == 100
    assert history[-1]["val_accuracy"] > 0.3 > history[0]["val_accuracy"]
    assert history[-1]["val_loss"] < 0.9 * history[0]["val_loss"]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"best.pt", "last.pt"}


def test_what_cannot_be_honoured_is_one_message():
    """Of a network without gates, on a CPU without a counter."""
    model = nn.Sequential(nn.Flatten(), DynamicLowRankLayer(64, 10, 10))
    with pytest.warns(UserWarning, match="of the configuration:") as warned:
        ADLRNSTrainer(model, yaml.safe_load(CONFIG), torch.device("cpu"))
    assert len(warned) == 1
    lines = str(warned[0].message).splitlines()[1:]
    assert [line.split()[1] for line in lines] == [
        "scheduler.energy_budget_mJ_per_sample",
        "train.energy_penalty_weight",
        "hardware.gpu_type",
    ]
    assert "2.5e+06 multiply-adds of a sample" in lines[0]


def test_numbers_may_be_strings_in_both_kinds_of_files(tmp_path):
    (tmp_path / "c.yaml").write_text(CONFIG, encoding="utf-8")
    settings = Settings.read(tmp_path / "c.yaml")
    assert (settings.train.lr, settings.hardware.energy_per_flop) == (1e-4, 1e-6)
    assert settings.network == "adlrns_resnet"
    text = "[model]\nr_max = '32'\nr_min = 2.0\n[train]\nlr = '1e-4'\n[hardware]\nmemory_bandwidth = '9e11'\n"
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    settings = Settings.read(tmp_path / "c.toml")
    assert (settings.model.r_max, settings.model.r_min, settings.train.lr) == (32, 2, 1e-4)
    assert isinstance(settings.model.r_max, int)
    assert settings.hardware.memory_bandwidth == 9e11


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.yaml", "model: [", "is not valid YAML"),
        ("c.yml", "- 3", "holds list; it must have sections: model, train, scheduler, hardware"),
        ("c.yaml", "train: {lr: fast}", "train.lr = 'fast' is not a number"),
        ("c.yaml", "train: {epochs: 2.5}", "train.epochs = 2.5 must be a whole number"),
        (
            "c.yaml",
            "model: {type: resnet50}",
            "model.type = 'resnet50' is unknown; write adlrns_resnet, or leave it out",
        ),
        ("c.yaml", "scheduler: {type: 3}", "scheduler.type = 3 is not a text"),
    ],
)
def test_bad_files_get_one_line(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        Settings.read(tmp_path / name)


def test_an_empty_section_is_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("model:\ntrain:\n  epochs: 3\n", encoding="utf-8")
    assert Settings.read(tmp_path / "c.yaml") == Settings.of({"train": {"epochs": 3}})


def test_all_mistakes_of_a_file_are_named_at_once():
    tables = {"modle": {}, "model": {"rmax": 3, "r_min": -1}, "train": {"lr": "fast"}, "hardware": 3}
    with pytest.raises(ValueError, match="the configuration has 5 mistakes") as raised:
        Settings.of(tables)
    for part in (
        "unknown section modle",
        "unknown key model.rmax",
        "model.r_min = -1",
        "train.lr = 'fast'",
        "hardware = 3",
    ):
        assert part in str(raised.value)


def macs_of(model, x):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x)
    return counter.get_total_flops() / 2 / len(x)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_modelled_energy_limits_the_multiply_adds(compressed):
    x, y = digits(0, 256).tensors
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    model = compress(model, [x], 80.0) if compressed else resnet(**UNGATED)
    macs = 2000 if compressed else 500_000
    config = {
        "train": {"lr": 1e-3},
        "scheduler": {"energy_budget_mJ_per_sample": 2e-6 * macs},
        "hardware": {"energy_per_flop": "1e-6"},
    }
    with pytest.warns(UserWarning, match=re.escape(f"{macs:.4g} multiply-adds of a sample")):
        trainer = ADLRNSTrainer(model, config)
    assert isinstance(model, CompressedModel) == compressed
    before = macs_of(model, x)
    trainer.train([(x, y)], [(x, y)], 1)
    assert 0.8 * macs < macs_of(model, x) <= macs < before


def test_an_energy_below_the_least_is_refused_with_the_least():
    x, y = digits(0, 64).tensors
    config = {"scheduler": {"energy_budget_mJ_per_sample": 0.1}, "hardware": {"energy_per_flop": 1e-6}}
    with pytest.warns(UserWarning, match="5e"):
        trainer = ADLRNSTrainer(resnet(), config)
    with pytest.raises(ValueError, match=r"energy_budget_mJ_per_sample = 0.1 is 5e\+04 multiply-adds .* raise it to 0"):
        trainer.train([(x, y)], [(x, y)], 1)


def test_measured_energy_limits_a_network_of_its_own_layers(monkeypatch):
    class Wasteful:
        name, total = "test", 0.0

        def mJ(self):
            self.total += 64 * 3.0 / 2  # read twice a batch
            return self.total

    monkeypatch.setattr("hina_kohya.adlrns.layer.limits.energy_counter", lambda device: (Wasteful(), ""))
    batches = list(zip(*(part.split(64) for part in digits(0, 512).tensors), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer = ADLRNSTrainer(resnet(**UNGATED), {"scheduler": {"energy_budget_mJ_per_sample": 1.0}})
    before = macs_of(trainer.model, batches[0][0])
    trainer.validate(batches)
    assert trainer.limits.manager.mean == pytest.approx(1.5)
    assert macs_of(trainer.model, batches[0][0]) < before


def test_the_small_resnet_has_the_cost_that_it_says_and_a_dense_twin():
    for size in (8, 32, 64):
        torch.manual_seed(0)
        model, x = adlrns_resnet(7, image_size=size), torch.randn(4, 3, size, size)
        assert model(x).shape == (4, 7)
        twin = adlrns_resnet(7, image_size=size, dense=True)
        assert not any(isinstance(m, DynamicLowRankLayer) for m in twin.modules())
        from hina_kohya.adlrns.layer.sharing import costs

        counted = costs(model, x)
        assert counted.dense + counted.fixed == pytest.approx(macs_of(twin, x))
        assert counted.most == pytest.approx(macs_of(model, x))
    with pytest.raises(ValueError, match="classes = 0, width = -1: each must be at least 1"):
        adlrns_resnet(0, widths=(8, -1))


@pytest.fixture
def folder(tmp_path):
    """The digits as PNG files in folders of their classes."""
    for part, first, last in (("train", 0, 120), ("val", 1000, 1040)):
        for number, (image, target) in enumerate(digits(first, last)):
            place = tmp_path / "data" / part / f"digit {int(target)}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = (image[0] * 255).round().byte().numpy()
            Image.fromarray(pixels).resize((12, 10)).save(place / f"{number}.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_the_options_of_run_exp(folder, tmp_path, monkeypatch, capsys):
    """--gpu 0 too, where there is one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    text = CONFIG.replace("epochs: 100", "epochs: 3").replace("lr: 1e-4", "lr: 5e-3").replace("size: 64", "size: 8")
    (tmp_path / "experiments" / "custom_config.yaml").write_text(text, encoding="utf-8")
    gpu = ["--gpu", "0"] if torch.cuda.is_available() else []
    words = ["--config", "experiments/custom_config.yaml", "--data_dir", "data", "--save_dir", "./results", *gpu]
    assert main(["adlrns", "run", *words, "--image_size", "8", "--dense"]) == 0
    said = capsys.readouterr().out
    assert "data: 120 images to train on, 40 held out, 10 classes" in said
    assert said.count("of the configuration:") == 1
    assert "\nepoch 3 of 3: loss " in said
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["ADLRNS", "dense"]
    assert results["rows"][1]["accuracy"] > 0.3
    assert len(results["history"]) == 3
    assert results["rows"][0]["accuracy"] == results["history"][-1]["val_accuracy"]
    assert "| dense |" in (tmp_path / "results" / "results.md").read_text()
    assert {"best.pt", "last.pt"} < {path.name for path in (tmp_path / "results").iterdir()}


def test_without_a_configuration_it_is_the_one_that_is_shipped():
    shipped = Path(__file__).parents[2] / "configs" / "adlrns" / "resnet.toml"
    assert Settings.of(training.DEFAULT) == Settings.read(shipped)


def test_the_image_folder(folder):
    (folder / "train" / "digit 0" / "notes.txt").write_text("no image")
    (folder / "train" / ".cache").mkdir()
    train, val, classes = images.load(folder, 8)
    assert classes == [f"digit {number}" for number in range(10)]
    assert (len(train), len(val)) == (120, 40)
    every = torch.stack([image for image, _ in train])
    assert every.shape == (120, 3, 8, 8)
    torch.testing.assert_close(every.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(every.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    assert val.centre is train.centre
    assert [int(val[index][1]) for index in (0, 39)] == [0, 9]
    assert train[3][0].equal(train[3][0])


def test_a_bad_folder_or_option_gets_one_line(folder, tmp_path, capsys):
    def said(*words, data=folder):
        assert main(["adlrns", "run", "--data_dir", str(data), "--save_dir", str(tmp_path / "out"), *words]) == 2
        return capsys.readouterr().err

    assert "has no folder train and no folder val; it must have train/CLASS/*.png and val/CLASS/*.png" in said(
        data=tmp_path / "none"
    )
    assert "--image_size 0 must be at least 1" in said("--image_size", "0")
    assert "--gpu 99: torch sees" in said("--gpu", "99")
    assert "does not exist" in said("--config", "none.yaml")
    (folder / "val" / "letter a").mkdir()
    assert "val has classes that train has not: letter a" in said()
    (folder / "val" / "letter a").rmdir()
    (folder / "train" / "digit x").mkdir()
    assert "train has no image of digit x" in said()
    (folder / "train" / "digit x" / "broken.png").write_bytes(b"no picture")
    assert "broken.png is no image that can be read" in said("--image_size", "8")
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat" / "val").mkdir()
    assert "train has no image in a folder of its class; val has no image" in said(data=tmp_path / "flat")


def test_its_help_needs_no_data(capsys):
    with pytest.raises(SystemExit) as left:
        main(["adlrns", "run", "--data_dir", "x", "--help"])
    assert left.value.code == 0
    assert "--config my.yaml --data_dir images --save_dir runs/images --gpu 0" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["adlrns", "run", "--help"])
    assert "--data_dir FOLDER" in capsys.readouterr().out
