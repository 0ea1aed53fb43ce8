"""One module on one layer: against the static LoRA it generalises, merged, in eval, under checkpointing."""

import copy
import importlib.util
import math

import pytest
import torch
from lycoris.modules.locon import LoConModule
from torch import nn

from hina_kohya.adlrns.adapter.execution import Batch
from hina_kohya.adlrns.adapter.module import MAKING, AdlrnsModule
from hina_kohya.adlrns.adapter.states import States
from tests.support.small_networks import UNet, batch, create, frozen, randomise

RANK, ALPHA = 6, 3
LAYERS = {
    "linear": lambda: (nn.Linear(8, 10), (4, 5, 8)),
    "conv1d": lambda: (nn.Conv1d(6, 8, 3), (4, 6, 9)),
    "conv2d": lambda: (nn.Conv2d(6, 8, 3, stride=2, padding=1), (4, 6, 7, 5)),
    "groups": lambda: (nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2), (4, 6, 7, 5)),
    "conv3d": lambda: (nn.Conv3d(6, 8, 2), (4, 6, 4, 3, 3)),
}


def made(name, states=3, kept=None, **arguments):
    """(module, its states, layer, x); kept: [K, R], all if None"""
    torch.manual_seed(0)
    layer, shape = LAYERS[name]()
    layer = layer.double().requires_grad_(False)
    shared = States(states)
    token = MAKING.set(shared)
    module = AdlrnsModule("lora_unet_a", layer, 1.0, RANK, ALPHA, **arguments).double().eval()
    MAKING.reset(token)
    nn.init.normal_(module.lora_up.weight)
    if kept is not None:
        kept = torch.as_tensor(kept, dtype=torch.bool)
        module.set_table(kept, torch.randn(kept.shape), torch.rand(kept.shape))
    return module, shared, layer, torch.randn(shape, dtype=torch.float64)


def reference(module, layer, x, mask, multiplier=1.0):
    """W + multiplier * alpha / R * up @ diag(mask) @ down, one sample at a time; mask: [N, R]"""
    rows = []
    for sample, keep in zip(x, mask, strict=True):
        diff = (module.lora_up.weight.flatten(1) * keep) @ module.lora_down.weight.flatten(1)
        weight = layer.weight + multiplier * ALPHA / RANK * diff.view(layer.weight.shape)
        rows.append(torch.func.functional_call(layer, {"weight": weight}, sample[None])[0])
    return torch.stack(rows)


TABLE = [[1, 0, 1, 0, 0, 1], [0] * 6, [1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("multiplier", [0, 0.5, -1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_all_directions_are_a_static_lora(name, multiplier):
    module, states, layer, x = made(name)
    states._batch = Batch((0, 2, 1, 0))
    module.multiplier = multiplier
    expected = reference(module, layer, x, torch.ones(4, RANK), multiplier)
    torch.testing.assert_close(module(x), expected, rtol=1e-6, atol=1e-9)
    module.apply_to()
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-9)
    module.restore()
    torch.testing.assert_close(layer(x), reference(module, layer, x, torch.zeros(4, RANK)))


@pytest.mark.parametrize("states", [(0, 1, 2, 0), (1, 1, 1, 1), (2, 2, 2, 2), (1, 0, 0, 0)])
@pytest.mark.parametrize("name", LAYERS)
def test_the_masked_reference_with_its_gradients(name, states):
    module, shared, layer, x = made(name, kept=TABLE)
    shared._batch = Batch(states)
    mask = module.adlrns_kept[list(states)].double()
    out, expected = module.train()(x), reference(module, layer, x, mask)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-9)
    weight = torch.randn_like(out)
    parameters = [module.lora_up.weight, module.lora_down.weight]
    ours = torch.autograd.grad((out * weight).sum(), parameters)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_alone_is_a_row_in_a_batch_and_eval_repeats(name):
    module, shared, _, x = made(name, kept=TABLE)
    states = (2, 1, 0, 2)
    shared._batch = Batch(states)
    together = module(x)
    assert module(x).equal(together)
    for row, state in enumerate(states):
        shared._batch = Batch((state,))
        torch.testing.assert_close(module(x[row : row + 1])[0], together[row], rtol=1e-12, atol=1e-12)


def test_granularity_batch_uses_what_any_sample_keeps():
    module, shared, layer, x = made("linear", kept=TABLE)
    shared.whole, shared._batch = True, Batch((0, 1, 2, 2))
    mask = torch.tensor([1, 1, 1, 1, 0, 1.0]).expand(4, RANK)
    torch.testing.assert_close(module(x), reference(module, layer, x, mask))


@pytest.mark.parametrize("case", ["no direction", "module dropout", "all", "mixed"])
@pytest.mark.parametrize("name", ["linear", "groups"])
def test_every_parameter_has_a_gradient(name, case):
    kept = {"no direction": [[0] * 6] * 3, "mixed": TABLE}.get(case)
    module, shared, _, x = made(name, kept=kept, module_dropout=1.0 * (case == "module dropout"))
    shared._batch = Batch((0, 1, 2, 0))
    module.train()(x).sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any() == (case in ("all", "mixed"))


def test_dropout_acts_on_the_adapter_alone():
    module, shared, layer, x = made("linear", dropout=1.0)
    shared._batch = Batch((0,))
    torch.testing.assert_close(module.train()(x), layer(x))
    for name in ("linear", "groups"):
        module, shared, layer, x = made(name, rank_dropout=1.0)
        shared._batch = Batch((0,))
        torch.testing.assert_close(module.train()(x), reference(module, layer, x, torch.zeros(4, RANK)))
        assert not torch.equal(module.eval()(x), layer(x))


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_merged_is_the_mean_over_states(name, precise):
    module, _, layer, x = made(name, kept=TABLE)
    before = layer.weight.clone()
    energy, kept = module.adlrns_stats[1].double(), module.adlrns_kept.double()
    mean = (kept * energy).sum(0) / energy.sum(0)
    assert 0 < mean[0] < 1
    assert mean[4] == 0
    expected = reference(module, layer, x, mean.expand(4, RANK), 0.5)
    module.merge_to(0.5, **({"precise": True} if precise else {}))
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-7)
    if not precise:
        module.merge_to(-0.5)
        torch.testing.assert_close(layer.weight, before)
    module.onfly_merge(1.0)
    module.onfly_restore()


def test_the_table_of_equal_states_merges_to_what_it_does():
    module, shared, layer, x = made("conv2d", kept=[[1, 0, 1, 1, 0, 0]] * 3)
    shared._batch = Batch((0, 1, 2, 0))
    expected = module(x)
    module.merge_to(1.0)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    module, shared, layer, x = made("linear", kept=TABLE)
    shared._batch = Batch((0, 1, 2, 0))
    expected = module(x)
    table = module.adlrns_kept.clone()
    module.to(dtype)
    layer.to(dtype)
    out = module.train()(x.to(dtype))
    assert out.dtype == dtype
    assert module.adlrns_kept.equal(table)
    torch.testing.assert_close(out.double(), expected, rtol=0.05, atol=0.1)
    out.sum().backward()
    assert module.float()(x.to(dtype)).dtype == dtype  # factors in another type than the input


def test_nan_in_the_input_comes_out():
    module, shared, _, x = made("linear", kept=TABLE)
    shared._batch = Batch((0, 1, 2, 0))
    x[0, 0, 0] = math.nan
    out = module(x)
    assert out[0, 0].isnan().all()
    assert not out[1:].isnan().any()


def test_without_a_timestep(caplog):
    module, _, layer, x = made("linear", kept=TABLE)
    for _ in range(2):
        torch.testing.assert_close(module(x), reference(module, layer, x, torch.ones(4, RANK)))
    assert caplog.text.count("knows no timestep") == 1
    with pytest.raises(ValueError, match="knows no timestep.*bins=1"):
        module.train()(x)
    single, _, layer, x = made("linear", states=1)
    assert single.train()(x).shape == (4, 5, 10)


def test_the_norm_of_all_directions_is_capped():
    module, *_ = made("conv2d")
    norm_now = lambda: float(module.get_diff_weight()[0].detach().norm())  # all directions are kept
    before = norm_now()
    scaled, norm = module.apply_max_norm(before * 2)
    assert not scaled
    assert float(norm) == pytest.approx(before, rel=1e-5)
    scaled, norm = module.apply_max_norm(before / 4)
    assert scaled
    assert float(norm) == pytest.approx(before / 4, rel=1e-5) == pytest.approx(norm_now(), rel=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv2d", "groups"])
@pytest.mark.parametrize("alpha", [0, None, 5.0])
def test_alpha_and_the_state_dict_are_locons(name, alpha):
    layer = LAYERS[name]()[0].requires_grad_(False)
    for rs in (False, True):
        ours = AdlrnsModule("lora_unet_a", layer, 1.0, RANK, alpha, rs_lora=rs)
        theirs = LoConModule("lora_unet_a", layer, 1.0, RANK, alpha, rs_lora=rs)
        assert ours.scale == pytest.approx(theirs.scale)
        assert float(ours.alpha) == pytest.approx(float(theirs.alpha))
    nn.init.normal_(ours.lora_up.weight)
    plain = {key: each for key, each in ours.state_dict().items() if not key.startswith("adlrns")}
    if name != "groups" or importlib.util.find_spec("lycoris.kernels"):  # LyCORIS 3.4 has grouped shapes wrong
        assert {key: each.shape for key, each in plain.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
        theirs.load_state_dict(plain)
        torch.testing.assert_close(theirs.get_diff_weight()[0], ours.get_diff_weight()[0])


def test_the_file_s_alpha_is_the_scale():
    module, *_ = made("linear")
    module.load_state_dict({**module.state_dict(), "alpha": torch.tensor(1.5)})
    assert module.scale == 1.5 / RANK


@pytest.mark.parametrize(
    ("layer", "arguments", "says"),
    [
        (nn.LayerNorm(4), {}, "layernorm is not supported"),
        (nn.Embedding(4, 4), {}, "unknown is not supported"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), {}, "padding_mode 'circular'"),
        (nn.Linear(4, 4), {"lora_dim": 0}, "network_dim = 0 must be at least 1"),
        (nn.Linear(4, 4), {"use_tucker": True}, "adlrns has no use_tucker"),
        (nn.Linear(4, 4), {"weight_decompose": True}, "adlrns has no dora_wd"),
        (nn.Linear(4, 4), {"budget": 3}, "budget is one for all modules"),
    ],
)
def test_what_it_refuses(layer, arguments, says):
    with pytest.raises(ValueError, match=says):
        AdlrnsModule("lora_unet_a", layer, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(reentrant):
    gradients, windows = [], []
    for how in (None, reentrant):
        unet = frozen(UNet())
        network = create(unet, bins=5, probe_every=1)
        randomise(network)
        unet.block.how = how
        network.on_step_start(None, unet)
        for seed in (0, 1):  # accumulation; and a look aside between forward and backward
            x, timesteps = batch(seed=seed)
            out = unet(x.requires_grad_(), timesteps)
            with torch.no_grad():
                unet(x[:2], timesteps.flip(0)[:2])
            out.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        windows.append([copy.deepcopy(lora.window) for lora in network.unet_loras])
    for expected, found in zip(*gradients, strict=True):
        assert expected.any()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    for expected, found in zip(*windows, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
