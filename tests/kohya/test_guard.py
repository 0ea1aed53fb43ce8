"""A run that passes the hooks by stops before its first step, with the place; nobody else is bothered."""

import sys

import pytest
import torch
from torch import nn

from hina_kohya.trainers import guard, hooks, optimizers
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.network_args import NetworkOptions
from hina_kohya.trainers.networks import adopt

INIT = vars(torch.optim.Optimizer)["__init__"]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.lora_unet_a = nn.Module()
        self.lora_unet_a.lora_up = nn.Linear(2, 4, bias=False)

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        return [{"params": list(self.parameters()), "lr": default_lr}], ["unet"]


@pytest.fixture
def network(monkeypatch):
    """In a run of a trainer, which is known by its command line."""
    monkeypatch.setattr(sys, "argv", ["train_network.py", "--optimizer_type", "AdamW"])
    made = Network()
    adopt(made, NetworkOptions())
    guard.expect(made, MUSUBI.modules)
    yield made
    guard.stand_down()
    assert vars(torch.optim.Optimizer)["__init__"] is INIT


def make_an_optimizer(groups):
    return torch.optim.SGD(groups, lr=1e-3)


def train(network):
    return make_an_optimizer(network.prepare_optimizer_params(None, None, 1e-3)[0])


def test_an_optimizer_that_nobody_was_asked_for(network):
    with pytest.raises(UserError, match=r"SGD was made by .*test_guard\.py: make_an_optimizer \(called by .*: train\)"):
        train(network)


def test_groups_that_nobody_was_asked_for(network):
    with pytest.raises(
        UserError, match=r"test_guard\.py: test_groups_that.* took the parameters of Network otherwise than"
    ):
        optimizers.build(torch.optim.SGD, None, network.parameters(), 1e-3)


def test_an_optimizer_through_the_hook(network):
    groups, _ = network.prepare_optimizer_params(None, None, 1e-3)
    optimizers.build(torch.optim.SGD, None, groups, 1e-3)
    assert vars(torch.optim.Optimizer)["__init__"] is INIT
    make_an_optimizer(groups)  # nobody expects anything any more


def test_an_optimizer_of_something_else(network):
    make_an_optimizer([nn.Parameter(torch.ones(2))])
    with pytest.raises(UserError):
        train(network)


def test_a_network_that_is_gone(network, monkeypatch):
    other = Network()
    guard.expect(other, ())
    params = list(other.parameters())
    del other
    make_an_optimizer(params)


def test_uninstalling_expects_nothing(network):
    hooks.uninstall()
    train(network)


def test_own_code_is_let_alone(network, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["my_script.py", "--steps", "3"])
    train(network)
    monkeypatch.setitem(sys.modules, "musubi_tuner.hv_train", sys)
    with pytest.raises(UserError):
        train(network)
