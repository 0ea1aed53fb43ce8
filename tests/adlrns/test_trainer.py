"""Training, replanning, resuming; the configuration files."""

import copy
import dataclasses as dc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import hina_kohya.adlrns
from hina_kohya.adlrns import ADLRNSTrainer, DynamicLowRankLayer, compress
from hina_kohya.adlrns.layer import perf as perf_module
from hina_kohya.adlrns.settings import Settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "adlrns").glob("*.toml"))


def data(n=192, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 8, generator=random) * torch.randn(n, 1, generator=random).exp()
    return list(zip(x.split(64), (x @ torch.randn(8, 6, generator=random)).split(64), strict=True))


class Net(nn.Module):
    def __init__(self, **more):
        super().__init__()
        torch.manual_seed(0)
        self.layer = DynamicLowRankLayer(8, 6, 6, r_min=1, **more)

    def forward(self, x):
        return self.layer(x)


def config(**sections):
    return {"model": {"r_min": 1, "r_max": 6}, **sections}


@pytest.mark.parametrize("kind", ["energy_aware", "linear", "adaptive"])
def test_it_trains_within_the_budget(kind, tmp_path):
    model = Net()
    settings = config(train={"lr": 0.05}, scheduler={"type": kind, "budget": 150.0})
    trainer = ADLRNSTrainer(model, settings, "cpu", tmp_path)
    history = trainer.train(data(), data(), num_epochs=8)
    assert len(history) == 8
    assert history[-1]["val_loss"] < 0.6 * history[0]["val_loss"]
    assert model.layer.planned <= 150
    assert 1 < history[-1]["val_rank"] < 6
    assert history[-1]["energy"] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"best.pt", "last.pt"}


def test_adaptive_plans_from_what_training_has_seen():
    model = Net()
    trainer = ADLRNSTrainer(model, config(scheduler={"type": "adaptive", "budget": 150.0}))
    trainer.train(data(), data(), 0)
    before = model.layer.gain.clone()
    trainer.train_epoch(data())
    assert not model.layer.gain.equal(before)


def test_the_penalty_lowers_the_cost_of_learned_gates():
    ends = {}
    for weight in (0.0, 20.0):
        model = Net(num_gate_blocks=3, scorer_hidden=4)
        sections = config(train={"lr": 0.05, "energy_penalty_weight": weight}, scheduler={"alpha": 0.5, "beta": 0.5})
        sections["model"] |= {"num_gate_blocks": 3, "scorer_hidden": 4}
        ends[weight] = ADLRNSTrainer(model, sections).train(data(), data(), 6)[-1]
    assert ends[20.0]["energy"] < 0.8 * ends[0.0]["energy"]
    assert ends[20.0]["val_rank"] < ends[0.0]["val_rank"]


def test_the_energy_weighs_operations_and_weights():
    model = Net(num_gate_blocks=3)
    trainer = ADLRNSTrainer(model, config(scheduler={"alpha": 2.0, "beta": 0.5}))
    _, rank = model.layer.train()(data()[0][0])
    assert float(trainer.energy().detach()) == pytest.approx(2.5 * rank * 14 / 48)


@pytest.mark.slow
def test_fine_tuning_brings_a_compressed_model_closer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6))
    batches = data()
    done = compress(model, [x for x, _ in batches], 60.0)
    with torch.no_grad():
        taught = [(x, model(x)) for x, _ in batches]
        before = sum(float(F.mse_loss(done(x), y)) for x, y in taught)
    trainer = ADLRNSTrainer(done, {"train": {"lr": 3e-3}, "scheduler": {"budget": 60.0}})
    trainer.train(taught, taught, 20)
    assert sum(float(F.mse_loss(done(x), y).detach()) for x, y in taught) < 0.9 * before
    assert 100 * done.planned / done.dense_macs <= 60


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    def trainer():
        return ADLRNSTrainer(Net(), config(scheduler={"type": "adaptive", "budget": 150.0}), save_dir=tmp_path)

    whole = trainer()
    whole.train(data(), data(), 4)
    trainer().train(data(), data(), 2)
    resumed = trainer()
    resumed.load(tmp_path / "last.pt")
    resumed.train(data(), data(), 2)
    assert resumed.history == whole.history
    for name, value in whole.model.state_dict().items():
        assert resumed.model.state_dict()[name].equal(value), name


def test_integer_targets_are_classes():
    batches = [(x, y.argmax(1)) for x, y in data()]
    trainer = ADLRNSTrainer(Net(), config(train={"lr": 0.05}))
    history = trainer.train(batches, batches, 5)
    assert history[-1]["val_loss"] < history[0]["val_loss"]


def test_an_energy_budget_needs_a_counter_and_then_holds_by_it(tmp_path, monkeypatch):
    monkeypatch.setattr(perf_module, "POWERCAP", tmp_path)
    torch.manual_seed(0)
    done = compress(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 6)), [x for x, _ in data()], 60.0)
    wanted = {"scheduler": {"budget": 60.0, "energy_budget_mJ_per_sample": 1.0}}
    with pytest.raises(
        ValueError, match=r"energy_budget_mJ_per_sample = 1.0 cannot be measured here \(no energy counter"
    ):
        ADLRNSTrainer(done, wanted)

    class Wasteful:
        name, total = "test", 0.0

        def mJ(self):
            self.total += 64 * 3.0 / 2  # read twice a batch: 3 mJ a sample between batches, 1.5 in one
            return self.total

    monkeypatch.setattr("hina_kohya.adlrns.layer.limits.energy_counter", lambda device: (Wasteful(), ""))
    trainer = ADLRNSTrainer(done, wanted)
    before = done.planned
    trainer.validate(data())
    assert trainer.limits.manager.mean == pytest.approx(1.5)
    assert done.planned < before


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configurations_train(path):
    settings = Settings.read(path)
    torch.manual_seed(0)
    layer = DynamicLowRankLayer(80, 90, **dc.asdict(settings.model))
    x = torch.randn(64, 80)
    history = ADLRNSTrainer(layer, settings).train([(x, x[:, :1].expand(-1, 90))], [(x, torch.zeros(64, 90))], 1)
    assert history[0]["val_rank"] > 0


def test_the_keys_of_the_original_configuration_are_known():
    settings = Settings.of(
        {
            "model": {"r_min": 4, "r_max": 64, "scorer_hidden": 32, "num_gate_blocks": 8},
            "train": {"batch_size": 128, "epochs": 100, "lr": 1e-3, "energy_penalty_weight": 1e-4},
            "scheduler": {"type": "energy_aware", "energy_budget_mJ_per_sample": 5.0, "alpha": 1.0, "beta": 0.1},
            "hardware": {"gpu_type": "A100", "flops_per_mac": 2, "energy_per_flop": 1e-11},
        }
    )
    assert settings.model.num_gate_blocks == 8


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"modle": {}}, "unknown section modle; did you mean model"),
        ({"model": {"rmax": 3}}, "unknown key model.rmax; did you mean r_max"),
        ({"model": 3}, "model = 3 must be a section"),
        ({"model": {"r_min": 9, "r_max": 8}}, "model.r_min = 9 is above model.r_max = 8"),
        ({"train": {"lr": -1.0}}, r"train.lr = -1.0 is outside \(0, inf\)"),
        ({"train": {"energy_penalty_weight": 1.0}}, "nothing to teach without gates"),
        ({"model": {"scorer_hidden": 4}}, "learns through gates only"),
        ({"scheduler": {"type": "cosine"}}, "scheduler.type = 'cosine' is unknown"),
    ],
)
def test_bad_settings_are_refused(tables, says):
    with pytest.raises(ValueError, match=says):
        Settings.of(tables)


def test_bad_files_and_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        Settings.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 3")
    with pytest.raises(ValueError, match="is not valid TOML"):
        Settings.read(tmp_path / "bad.toml")
    with pytest.raises(ValueError, match="has no DynamicLowRankLayer"):
        ADLRNSTrainer(nn.Linear(3, 3), {})
    with pytest.raises(ValueError, match="the training loader gave no sample"):
        ADLRNSTrainer(Net(), {}).train_epoch([])


def test_the_package_imports_neither_torch_nor_lycoris():
    code = "import sys, hina_kohya.adlrns as a; dir(a); sys.exit(bool({'torch', 'lycoris'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "name",
    [
        "ADLRNSTrainer",
        "BudgetManager",
        "CompressedModel",
        "DynamicLowRankLayer",
        "GateNetwork",
        "LightweightScorer",
        "PerfEstimator",
        "RankScheduler",
        "compress",
    ],
)
def test_the_names_of_the_document_are_here(name):
    assert getattr(hina_kohya.adlrns, name).__name__ == name
    assert name in dir(hina_kohya.adlrns)


def test_a_trainer_leaves_other_models_alone():
    model = Net()
    other = copy.deepcopy(model)
    ADLRNSTrainer(model, config()).train(data(), data(), 1)
    assert all(value.equal(other.state_dict()[name]) for name, value in Net().state_dict().items())
