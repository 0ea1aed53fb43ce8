"""Everything in which LyCORIS's dylora and tlora were found broken, asked of our module.

dylora draws its rank in eval and when merged, is stored at another strength than it was trained at, resumes nothing,
cannot be checkpointed, and crashes in bypass mode. tlora cannot do a 3x3 convolution or a state for each sample, gets
no timestep from sd-scripts, and changes with the base weights that it is loaded onto.
"""

import copy

import pytest
import torch
from lycoris.modules import get_module, make_module
from torch import nn
from torch.utils.checkpoint import checkpoint

from hina_kohya.adlrns.adapter import registration
from hina_kohya.adlrns.adapter.execution import Batch
from hina_kohya.adlrns.adapter.module import MAKING, AdlrnsModule
from hina_kohya.adlrns.adapter.states import States
from tests.support.small_networks import UNet, batch, create, frozen, randomise

RANK, ALPHA, STATES = 8, 4, 3
LAYERS = {
    "linear": (lambda: nn.Linear(6, 9), (4, 5, 6)),
    "conv3x3": (lambda: nn.Conv2d(6, 9, 3, padding=1), (4, 6, 5, 5)),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def made(kind, seed=0, **arguments):
    """(module with other directions in every state, its states, its layer, x); float64"""
    torch.manual_seed(seed)
    make, shape = LAYERS[kind]
    layer, states = make().double().requires_grad_(False), States(STATES)
    token = MAKING.set(states)
    module = AdlrnsModule("lora_unet_a", layer, 1.0, RANK, ALPHA, **arguments).double()
    MAKING.reset(token)
    nn.init.normal_(module.lora_up.weight)
    kept = torch.rand(STATES, RANK) < 0.5
    module.set_table(kept, torch.randn(STATES, RANK), torch.rand(STATES, RANK) + 0.1)
    states._batch = Batch((0, 2, 1, 2))
    return module, states, layer, torch.randn(shape, dtype=torch.float64)


def adapted(module, layer, x):
    return module(x) - layer(x)


def test_eval_repeats_itself(kind):
    module, _, _, x = made(kind)
    module.eval()
    first = module(x)
    assert all(module(x).equal(first) for _ in range(20))


def test_merging_repeats_itself(kind):
    module, _, layer, _ = made(kind)
    before, merged = layer.weight.clone(), []
    for _ in range(4):
        module.merge_to(1.0)
        merged.append(layer.weight.clone())
        with torch.no_grad():
            layer.weight.copy_(before)
    assert not merged[0].equal(before)
    assert all(each.equal(merged[0]) for each in merged)


def test_reloaded_it_is_as_strong_as_trained(kind):
    """LyCORIS's own way from a file: it must be detected, and its scale that of training, at every rank."""
    registration.register()
    module, states, layer, x = made(kind)
    expected = adapted(module.eval(), layer, x)
    state = {f"lora_unet_a.{name}": tensor for name, tensor in module.state_dict().items()}
    found = get_module(state, "lora_unet_a")
    assert found[0] is AdlrnsModule
    loaded = make_module(*found, "lora_unet_a", layer).double().eval()
    loaded.states = states
    torch.testing.assert_close(adapted(loaded, layer, x), expected, rtol=1e-5, atol=1e-6)  # it was made in fp32


@pytest.mark.slow
def test_resuming_loads_every_tensor():
    unet = frozen(UNet())
    network = create(unet, bins=6)
    randomise(network)
    other = create(frozen(UNet()), bins=6)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    result = other.load_state_dict(network.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    mine, theirs = network.state_dict(), other.state_dict()
    assert all(theirs[name].equal(tensor) for name, tensor in mine.items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_steps_are_the_steps(kind, reentrant):
    module, states, _, x = made(kind)
    module.train()
    states.probing = True
    for step in range(6):  # dylora: 6 of 8 such steps raise
        states._batch = Batch(tuple((step + sample) % STATES for sample in range(4)))
        gradients = []
        for run in (module, lambda rows: checkpoint(module, rows, use_reentrant=reentrant)):
            rows = x.clone().requires_grad_()
            run(rows).square().mean().backward()
            gradients.append([rows.grad, *(p.grad for p in module.parameters())])
            module.zero_grad()
        for plain, again in zip(*gradients, strict=True):
            torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-12)


def test_bypass(kind):
    module, states, layer, x = made(kind, bypass_mode=True)
    torch.testing.assert_close(module.bypass_forward(x, 0.5), layer(x) + 0.5 * adapted(module, layer, x))
    kept = module.adlrns_kept[list(states._batch.states)].double()
    for sample, keep in enumerate(kept):
        diff = (module.lora_up.weight.flatten(1) * keep) @ module.lora_down.weight.flatten(1) * ALPHA / RANK
        changed = {"weight": layer.weight + diff.view(layer.weight.shape)}
        expected = torch.func.functional_call(layer, changed, x[sample : sample + 1])[0]
        torch.testing.assert_close(module(x)[sample], expected)


def test_a_state_for_each_sample(kind):
    module, states, _, x = made(kind)
    together = module(x)
    for sample, state in enumerate(states._batch.states):
        states._batch = Batch((state,) * 4)
        torch.testing.assert_close(module(x)[sample], together[sample])
        states._batch = Batch((0, 2, 1, 2))
    states._batch = Batch((0,) * 4)
    assert not torch.allclose(module(x)[1], together[1])


def test_what_it_adds_does_not_depend_on_the_base_weights(kind):
    module, states, layer, x = made(kind)
    expected = adapted(module, layer, x)
    noisy = copy.deepcopy(layer)
    with torch.no_grad():
        noisy.weight.add_(0.05 * torch.randn_like(noisy.weight))
    other = made(kind, seed=9)[0]
    other.org_module[0], other.org_forward = noisy, noisy.forward
    other.states = states
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(adapted(other, noisy, x), expected)


def test_training_sees_the_timestep_that_the_model_is_called_with():
    """No set_timestep_mask: the call of the U-Net is enough, and a merge does not forget that states differ."""
    unet = frozen(UNet())
    network = create(unet, bins=2, warmup=0)
    x, _ = batch()
    for lora in network.adlrns_modules():
        kept = torch.zeros(2, lora.lora_dim, dtype=torch.bool)
        kept[1] = True  # nothing in the lower half of the timesteps
        lora.set_table(kept, torch.ones(2, lora.lora_dim), torch.ones(2, lora.lora_dim))
    network.on_step_start(None, unet)
    plain = frozen(UNet())
    low, high = torch.full((5,), 100), torch.full((5,), 900)
    torch.testing.assert_close(unet(x, low), plain(x, low))
    assert not torch.allclose(unet(x, high), plain(x, high))
    half = network.unet_loras[0]
    full = half.lora_up.weight.flatten(1) @ half.lora_down.weight.flatten(1) * half.scale
    torch.testing.assert_close(half.get_diff_weight()[0].flatten(1), full / 2)
