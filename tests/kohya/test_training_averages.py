"""`network_args ema=0.1`: the average against float64, beside each file, resumed by the bit; training is as without."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hina_kohya import HinaAdamW
from hina_kohya.core.reshaping import Change, reshape
from hina_kohya.files import atomic
from hina_kohya.loras import power_profile
from hina_kohya.trainers import averages
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.network_args import NetworkOptions, take
from hina_kohya.trainers.networks import adopt
from tests.support.counting import Counter

NATIVE = ("inner=networks.lora", "ema=0.2")


class Network(nn.Module):
    """Two pairs of factors, saved as sd-scripts' networks save."""

    def __init__(self, dtype=torch.float32, rank=3):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for name, shape in {"down": (rank, 8), "up": (6, rank), "down2": (rank, 16), "up2": (4, rank)}.items():
            values = torch.randn(shape, generator=generator)
            self.register_parameter(f"lora_{name}", nn.Parameter(values.to(dtype)))
        self.fails = False

    def save_weights(self, file, dtype, metadata):
        tensors = {name: value.detach().clone().to(dtype or value.dtype) for name, value in self.state_dict().items()}
        save_file(tensors, file, metadata)
        if self.fails and Path(file).name.startswith("."):
            raise OSError("no space left on device")


def adamw(params, **more):
    return torch.optim.AdamW(params, lr=0.05, **more)


def hina(params):
    return HinaAdamW(params, lr=0.05)


def bnb(params):
    return pytest.importorskip("bitsandbytes").optim.AdamW8bit(params, lr=0.05, min_8bit_size=1)


OPTIMIZERS = [adamw, hina, bnb]


def begun(make=adamw, ema=0.1, **how):
    """(network, optimizer, its average)"""
    network = Network(**how)
    adopt(network, NetworkOptions(ema=ema))
    optimizer = make(list(network.named_parameters()) if make is hina else list(network.parameters()))
    averages.follow(optimizer)
    return network, optimizer, averages._kept[network]


def train(network, optimizer, steps, first=0):
    """The parameters after each step, in float64."""
    history = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for param in network.parameters():
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
        history.append({name: param.detach().double().clone() for name, param in network.named_parameters()})
    return history


def expected(history, ema):
    """The average in float64: the weight of each step is the profile's mass between it and the one before."""
    weights = power_profile.shares(range(1, len(history) + 1), power_profile.exponent(ema))
    return {name: sum(w * each[name] for w, each in zip(weights, history, strict=True)) for name in history[0]}


@pytest.mark.parametrize("ema", [0.02, 0.1, 0.2886])
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_file_holds_the_average_of_all_steps(tmp_path, make, ema):
    network, optimizer, _ = begun(make, ema)
    history = train(network, optimizer, 40)
    network.save_weights(str(tmp_path / "a-000010.safetensors"), None, {"ss_seed": "1"})
    found = load_file(tmp_path / "a-000010-ema.safetensors")
    for name, value in expected(history, ema).items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
        assert torch.equal(load_file(tmp_path / "a-000010.safetensors")[name].double(), history[-1][name])
        assert torch.equal(network.get_parameter(name).double(), history[-1][name])
    with safe_open(tmp_path / "a-000010-ema.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_seed"] == "1"
    assert json.loads(metadata["hina_average"])["done"] == f"hina-kohya: average of 40 steps, power profile ema={ema:g}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-000010-ema.safetensors", "a-000010.safetensors"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_adapter_is_averaged_in_float32_and_rounded_once(tmp_path, dtype):
    """A step moves it by less than half a unit in the last place, which an average in this dtype would lose."""
    network, optimizer, average = begun(ema=0.28, dtype=dtype)
    history = train(network, optimizer, 400)
    assert {value.dtype for value in average.values.values()} == {torch.float32}
    network.save_weights(str(tmp_path / "a.safetensors"), None, None)
    found = load_file(tmp_path / "a-ema.safetensors")
    for name, value in expected(history, 0.28).items():
        assert found[name].dtype == dtype
        unit = torch.finfo(dtype).eps * value.abs()
        assert ((found[name].double() - value).abs() <= 0.51 * unit + 1e-6).all()


def test_what_the_trainer_does_after_a_step_is_in_it(tmp_path):
    """`scale_weight_norms` shrinks the weights between the step and the file."""
    network, optimizer, average = begun()
    history = []
    for step in range(5):
        train(network, optimizer, 1, step)
        with torch.no_grad():
            for param in network.parameters():
                param.mul_(0.5)
        history.append({name: param.detach().double().clone() for name, param in network.named_parameters()})
    network.save_weights(str(tmp_path / "a.safetensors"), None, {})
    for name, value in expected(history, 0.1).items():
        torch.testing.assert_close(average.values[name].double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_resumed_average_is_the_same_by_the_bit(tmp_path, make):
    whole, optimizer, average = begun(make)
    train(whole, optimizer, 7)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    train(whole, optimizer, 6, first=7)
    average.take()
    resumed, optimizer, again = begun(make)
    resumed.load_state_dict(load_file(tmp_path / "model.safetensors"))
    optimizer.load_state_dict(optimizer.state_dict())  # as accelerate does, of an optimizer without a step
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.bin", weights_only=True))
    assert again.steps == 7
    train(resumed, optimizer, 6, first=7)
    again.take()
    assert again.steps == average.steps == 13
    for name, value in average.values.items():
        assert torch.equal(again.values[name], value)


def test_a_state_without_an_average_and_one_too_many(tmp_path, caplog):
    network, optimizer, _ = begun()
    train(network, optimizer, 3)
    with_average = optimizer.state_dict()
    plain = adamw(list(Network().parameters()))
    plain.load_state_dict(with_average)  # ema was taken out of network_args
    assert plain.state_dict().keys() == {"state", "param_groups"}
    network, optimizer, average = begun()
    optimizer.load_state_dict(plain.state_dict())
    assert "the state has no average (ema); it begins with the steps of this run" in caplog.text
    history = train(network, optimizer, 2)
    average.take()
    for name, value in expected(history, 0.1).items():
        torch.testing.assert_close(average.values[name].double(), value, rtol=1e-5, atol=1e-6)


def test_another_width_goes_on_and_is_said(caplog):
    network, optimizer, _ = begun(ema=0.1)
    train(network, optimizer, 3)
    _, other, average = begun(ema=0.2)
    other.load_state_dict(optimizer.state_dict())
    assert average.steps == 3
    assert "the average was kept with ema=0.1 and goes on with 0.2" in caplog.text


def test_the_average_of_another_network_is_refused_before_anything_changes():
    network, optimizer, _ = begun(rank=2)
    train(network, optimizer, 3)
    _, other, average = begun()
    with pytest.raises(ValueError, match="is of another network; use the same --network_args"):
        other.load_state_dict(optimizer.state_dict())
    assert average.steps == 0
    assert not other.state


def test_a_full_disk_loses_neither_the_old_file_nor_the_weights(tmp_path):
    network, optimizer, _ = begun()
    train(network, optimizer, 2)
    file = tmp_path / "a.safetensors"
    network.save_weights(str(file), None, {})
    before = (tmp_path / "a-ema.safetensors").read_bytes()
    history = train(network, optimizer, 2, first=2)
    network.fails = True
    with pytest.raises(OSError, match="no space left"):
        network.save_weights(str(file), None, {})
    assert (tmp_path / "a-ema.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    for name, param in network.named_parameters():
        assert torch.equal(param.double(), history[-1][name])


def test_no_second_file_beside_an_unfinished_one(tmp_path):
    network, optimizer, _ = begun()
    train(network, optimizer, 2)
    with atomic(tmp_path / "best.safetensors") as unfinished:
        network.save_weights(str(unfinished), None, {})
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_before_the_first_step_there_is_none(tmp_path, caplog):
    network, _, _ = begun()
    network.save_weights(str(tmp_path / "a.safetensors"), None, {})
    assert "has no average beside it: no step was seen yet" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_host_waits_for_nothing():
    network, optimizer, average = begun()
    train(network, optimizer, 2)
    average.take()
    average._is_due = True
    with Counter() as counter:
        average.take()
    assert counter.synchronisations == []
    assert average.steps == 3


class ScheduleFree(torch.optim.SGD):
    def eval(self):
        pass


class Hookless(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(params, lr=0.1)
        del self._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (ScheduleFree, "ema=0.1 is of no use here: ScheduleFree saves an average by itself; remove ema"),
        (Hookless, "ema=0.1 sees no step, since Hookless does not run torch's step hooks; remove ema"),
    ],
)
def test_optimizers_that_cannot_be_followed_are_refused(cls, message):
    with pytest.raises(UserError, match=message):
        begun(cls)


@pytest.mark.parametrize("value", ["1", "-0.1", "nan", "wide", "0.2887"])
def test_other_widths_are_refused_when_the_network_is_made(value):
    with pytest.raises(UserError, match=r"must be above 0 and at most 0\.2887: .*; write ema=0\.1"):
        take({"ema": value})


def test_off_by_default_and_by_zero():
    assert [take(words)[0].ema for words in ({}, {"ema": "0"}, {"ema": "0.05"})] == [None, None, 0.05]
    assert take({"ema": "0.05", "algo": "lokr"})[1] == {"algo": "lokr"}


def done(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["hina_average"])["done"]


@pytest.mark.old_layout_too
@pytest.mark.parametrize("optimizer", ["HinaAdamW", "AdamW"])
def test_a_whole_training_and_its_resume(trainer, optimizer):
    """The plain file is the same by the bit; a state that is resumed goes on with the average."""
    chosen = {"network": "hina_kohya.network", "optimizer": optimizer}
    extra = ("--text_encoder_lr", "1e-4", "--unet_lr", "2e-4")
    without = trainer.train(**chosen, network_args=NATIVE[:1], steps=4, extra=extra)
    first = trainer.train(**chosen, network_args=NATIVE, steps=4, extra=(*extra, "--save_state"))
    assert first.bits == without.bits
    assert not list(without.out.glob("*-ema*"))
    average = load_file(first.out / "lora-ema.safetensors")
    assert average.keys() == first.tensors.keys()
    differ = [name for name in average if not torch.equal(average[name], first.tensors[name])]
    assert len(differ) > len(average) / 3
    assert done(first.out / "lora-ema.safetensors") == "hina-kohya: average of 4 steps, power profile ema=0.2"
    saved = torch.load(first.out / "lora-state" / "optimizer.bin", weights_only=True)["hina_average"]
    assert saved["steps"] == 4
    extra += ("--resume", str(first.out / "lora-state"), "--skip_until_initial_step", "--max_train_steps", "6")
    again = trainer.train(**chosen, network_args=NATIVE, steps=6, extra=extra)
    assert done(again.out / "lora-ema.safetensors") == "hina-kohya: average of 6 steps, power profile ema=0.2"


def test_in_musubi_tuner(musubi):
    args = ("inner=networks.lora_wan", "ema=0.2")
    report = musubi.train(network="hina_kohya.network", network_args=args, optimizer="HinaAdamW", steps=3)
    assert done(report.out / "lora-ema.safetensors") == "hina-kohya: average of 3 steps, power profile ema=0.2"
    assert load_file(report.out / "lora-ema.safetensors").keys() == report.tensors.keys()


def test_a_value_that_is_none_is_refused(trainer):
    args = ("inner=networks.lora", "ema=2")
    report = trainer.train(network="hina_kohya.network", network_args=args, steps=1, rc=1)
    assert "ema='2' must be above 0 and at most 0.2887" in report.log


def test_ranks_that_are_chosen_begin_it_anew(tmp_path, caplog):
    """As ADLRNS does: fewer rows and columns of the same parameters, right after a step."""
    network, optimizer, average = begun(ema=0.2)
    train(network, optimizer, 4)
    keep = torch.tensor([2, 0])
    changes = {param: Change.keep(int("up" in name), keep, 3) for name, param in network.named_parameters()}
    reshape([optimizer], changes)
    chosen = {name: param.detach().clone() for name, param in network.named_parameters()}
    with caplog.at_level("INFO", "hina_kohya"):
        network.save_weights(str(tmp_path / "lora.safetensors"), None, None)
    assert "the network has other ranks from here on, and its average (ema) begins anew" in caplog.text
    written = load_file(tmp_path / "lora-ema.safetensors")
    assert written.keys() == chosen.keys()
    assert all(torch.equal(written[name], chosen[name]) for name in chosen), "of one step it is that step"
    for param in network.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step()
    average.take()
    assert average.steps == 2
