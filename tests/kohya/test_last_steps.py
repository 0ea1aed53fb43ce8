"""`network_args calibrate_steps=64`: the metric of the last steps, beside the last file; training is as without."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hina_kohya.cli import main
from hina_kohya.files import atomic
from hina_kohya.loras.gathering import Gathering
from hina_kohya.loras.metric import Metric, beside
from hina_kohya.loras.summing import Source
from hina_kohya.trainers import calibrating
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import NetworkOptions, take
from hina_kohya.trainers.networks import adopt

BATCH = 3


class Factors(nn.Module):
    """A LoRA on a linear layer, as sd-scripts' networks have it."""

    def __init__(self, name, layer, rank, generator):
        super().__init__()
        self.lora_name, self.org_module = name, layer
        self.lora_down, self.lora_up = nn.Linear(layer.in_features, rank, False), nn.Linear(rank, layer.out_features)
        self.lora_up.bias = None
        for factor in (self.lora_down, self.lora_up):
            factor.weight.data = torch.randn(factor.weight.shape, generator=generator) * 0.3
        self.register_buffer("alpha", torch.tensor(float(rank)))

    def apply_to(self):
        forward, down, up = self.org_module.forward, self.lora_down, self.lora_up
        self.org_module.forward = lambda x: forward(x) + up(down(x))
        del self.org_module


class Network(nn.Module):
    def __init__(self, model, rank=2, dora=False):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.unet_loras = [Factors(f"lora_unet_{i}", layer, rank, generator) for i, layer in enumerate(model)]
        for lora in self.unet_loras:
            self.add_module(lora.lora_name, lora)
        if dora:
            self.unet_loras[0].dora_scale = nn.Parameter(torch.ones(self.unet_loras[0].org_module.out_features, 1))

    def save_weights(self, file, dtype, metadata):
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, file, metadata)


class Run:
    """A training of two layers; what a trainer would say of itself."""

    def __init__(self, steps=6, calibrate_steps=2, lr=0.0, scaler=None, **how):
        torch.manual_seed(0)
        self.model, self.steps, self.done, self.scaler = (
            nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 7)),
            steps,
            0,
            scaler,
        )
        self.network = Network(self.model, **how)
        adopt(self.network, NetworkOptions(calibrate_steps=calibrate_steps))
        for lora in self.network.unet_loras:
            lora.apply_to()
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=lr)
        calibrating.follow(self.optimizer, lambda: self.steps - self.done, lambda: scaler)

    def loss(self, step):
        return self.model(torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(step))).square().mean()

    def train(self, until=None, accumulate=1):
        while self.done < (until or self.steps):
            for part in range(accumulate):
                loss = self.loss(accumulate * self.done + part) / accumulate
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            if self.scaler is not None:
                self.scaler.update()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.done += 1

    def save(self, path):
        self.network.save_weights(str(path), None, None)
        return path


def gathered(run, file, steps):
    """The metric of these steps with the factors as they are, by hand."""
    with Gathering.on(layers(run), file) as metric:
        for step in steps:
            run.loss(step).backward()
    run.optimizer.zero_grad()
    return metric.tensors()


def layers(run):
    return {f"lora_unet_{i}": layer for i, layer in enumerate(run.model)}


def test_it_is_what_calibration_gathers_over_the_same_batches(tmp_path):
    run = Run()
    run.train()
    file = run.save(tmp_path / "a.safetensors")
    metric = load_file(beside(file))
    for name, tensor in gathered(run, file, (4, 5)).items():
        torch.testing.assert_close(metric[name], tensor, rtol=1e-6, atol=0)
    assert Metric(beside(file), (Source(file),)).samples == 2 * BATCH


@pytest.mark.parametrize("accumulate", [1, 2])
def test_factors_that_move_change_it_by_as_much_as_they_move(tmp_path, accumulate):
    run = Run(lr=1e-3)
    run.train(accumulate=accumulate)
    file = run.save(tmp_path / "a.safetensors")
    metric, steps = load_file(beside(file)), range(4 * accumulate, 6 * accumulate)
    for name, tensor in gathered(run, file, steps).items():
        scale = 1 if name.endswith("down") else accumulate**2  # of the loss; one for all modules
        assert not torch.equal(metric[name], tensor)
        torch.testing.assert_close(scale * metric[name], tensor, rtol=0.05, atol=0.01 * float(tensor.abs().max()))


def test_training_is_the_same_by_the_bit(tmp_path):
    weights = []
    for steps in (0, 4):
        run = Run(lr=0.1, calibrate_steps=steps)
        run.train()
        weights.append(load_file(run.save(tmp_path / f"{steps}.safetensors")))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert [path.name for path in tmp_path.glob("*.metric.*")] == ["4.metric.safetensors"]


def test_a_run_shorter_than_it_is_looked_at_from_its_second_step(tmp_path):
    run = Run(steps=3, calibrate_steps=64)
    run.train()
    file = run.save(tmp_path / "a.safetensors")
    assert Metric(beside(file), (Source(file),)).samples == 2 * BATCH


class Scaler:
    """As torch's, whose scale changes while it is in use."""

    def __init__(self):
        self.factor = 1024.0

    def is_enabled(self):
        return True

    def get_scale(self):
        return self.factor

    def scale(self, loss):
        return loss * self.factor

    def update(self):
        self.factor /= 2


def test_a_loss_that_fp16_scales_is_seen_as_it_is(tmp_path):
    plain, scaled = Run(), Run(scaler=Scaler())
    for run, name in ((plain, "a"), (scaled, "b")):
        run.train()
        run.save(tmp_path / f"{name}.safetensors")
    one, other = (load_file(tmp_path / f"{name}.metric.safetensors") for name in "ab")
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=0)


def test_files_before_the_last_step_have_none(tmp_path):
    run = Run()
    run.train(until=5)
    run.save(tmp_path / "a-000005.safetensors")
    run.train()
    with atomic(tmp_path / "best.safetensors") as unfinished:
        run.save(unfinished)
    assert not list(tmp_path.glob("*.metric.*"))


def test_a_run_that_is_ended_early_says_that_it_has_none(tmp_path, caplog):
    run = Run()
    run.train(until=3)
    run.steps = 3  # as stop_after ends it
    file = run.save(tmp_path / "a.safetensors")
    assert f"{file} has no metric beside it: the run ended before its last steps began" in caplog.text
    assert not beside(file).exists()


def test_who_saves_outside_a_trainers_loop_gets_the_file_and_a_line(tmp_path, caplog):
    def lost():
        raise UserError("hina-kohya does not know the loop of this trainer")

    network = Network(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 7)))
    adopt(network, NetworkOptions(calibrate_steps=2))
    for lora in network.unet_loras:
        lora.apply_to()
    calibrating.follow(torch.optim.SGD(network.parameters(), lr=0.1), lost, lambda: None)
    network.save_weights(str(tmp_path / "a.safetensors"), None, None)
    assert (tmp_path / "a.safetensors").is_file()
    assert "has no metric beside it: hina-kohya does not know the loop" in caplog.text


def test_nothing_that_goes_wrong_at_the_end_ends_the_run(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    run = Run(calibrate_steps=5)
    monkeypatch.setattr("hina_kohya.loras.gathering.save_file", full)
    run.train()
    file = run.save(tmp_path / "a.safetensors")
    assert "has no metric beside it: no space left on device" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_modules_that_no_gradient_reaches(tmp_path, caplog):
    run = Run()
    run.loss = lambda step: run.model[0](torch.ones(BATCH, 5)).square().mean()
    run.train()
    run.save(tmp_path / "a.safetensors")
    assert "no gradient reached 1 of 2 modules, the first lora_unet_1" in caplog.text


def test_freed_text_encoders_are_not_held(tmp_path):
    run = Run()
    last = calibrating.LastSteps(Network(nn.Sequential(nn.Linear(2, 2))), 3)
    assert [layer() for layer in last._layers.values()] == [None]
    assert run.model is not None


@pytest.mark.parametrize(("how", "message"), [({"dora": True}, "is a DoRA"), ({"rank": 600}, "a metric has 512 at")])
def test_adapters_without_a_metric_are_refused_before_the_first_step(how, message):
    with pytest.raises(UserError, match=message) as error:
        Run(**how)
    assert "network_args: calibrate_steps=2: " in str(error.value)
    assert str(error.value).endswith("; remove calibrate_steps")


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_other_values_are_refused_when_the_network_is_made(value):
    with pytest.raises(UserError, match=r"calibrate_steps='.*' must be a whole number .*; write calibrate_steps=64"):
        take({"calibrate_steps": value})


def test_off_by_default():
    assert [take(words)[0].calibrate_steps for words in ({}, {"calibrate_steps": "0"}, {"calibrate_steps": "9"})] == [
        0, 0, 9,
    ]  # fmt: skip


# In whole trainings

NATIVE = ("inner=networks.lora", "calibrate_steps=2")


def resized_by(report, tmp_path, capsys, samples):
    """`resize` takes the metric without being asked to."""
    assert beside(report.weights).is_file()
    words = ["--size", "50%", "-o", str(tmp_path / "small.safetensors")]
    assert main(["resize", str(report.weights), *words]) == 0
    said = capsys.readouterr().out
    assert f"by {samples} samples of data" in said
    assert "which lies beside it" in said


@pytest.mark.slow
@pytest.mark.old_layout_too
def test_a_whole_training_and_its_resume(trainer, tmp_path, capsys):
    chosen = {"network": "hina_kohya.network", "optimizer": "AdamW"}
    extra = ("--text_encoder_lr", "1e-2", "--unet_lr", "2e-2")
    without = trainer.train(**chosen, network_args=NATIVE[:1], steps=4, extra=extra)
    report = trainer.train(**chosen, network_args=(*NATIVE, "ema=0.2"), steps=4, extra=(*extra, "--save_state"))
    assert report.bits == without.bits
    assert not list(without.out.glob("*.metric.*"))
    resized_by(report, tmp_path, capsys, 2)
    extra += ("--resume", str(report.out / "lora-state"), "--skip_until_initial_step", "--max_train_steps", "6")
    again = trainer.train(**chosen, network_args=NATIVE, steps=6, extra=extra)
    assert beside(again.weights).is_file()


@pytest.mark.slow
def test_in_musubi_tuner(musubi, tmp_path, capsys):
    args = ("inner=networks.lora_wan", "calibrate_steps=2")
    report = musubi.train(network="hina_kohya.network", network_args=args, optimizer="HinaAdamW", steps=4)
    resized_by(report, tmp_path, capsys, 2)
