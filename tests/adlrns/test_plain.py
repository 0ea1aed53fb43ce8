"""One bin: ranks chosen once, rows dropped in place, a plain LoRA before and after, by any optimizer."""

import copy
import dataclasses as dc
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from lycoris.modules.locon import LoConModule
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hina_kohya import HinaAdamW
from hina_kohya.adlrns.adapter import choice, steps
from hina_kohya.adlrns.adapter.plain_module import PlainModule
from hina_kohya.adlrns.adapter.plain_network import MEMORY, PlainNetwork
from hina_kohya.loras import level
from hina_kohya.profile.shapes import SETS
from tests.support.ranks import outputs
from tests.support.small_networks import TextEncoder, UNet, batch, create, frozen, train

OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, 1e-2),
    "HinaAdamW": lambda params: HinaAdamW(params, lr=1e-2),
    "HinaAdamW fp32": lambda params: HinaAdamW(params, lr=1e-2, state="fp32", use_cautious=False),
}


def ranks(network):
    return {lora.lora_name: lora.lora_dim for lora in network.adlrns_modules()}


def still(network):
    """An optimizer whose steps leave the parameters as they are."""
    return torch.optim.SGD(network.parameters(), 0.0)


def uneven(network):
    """One module does more than the others."""
    for lora in network.adlrns_modules():
        lora.lora_up.weight.data *= 5 if lora.lora_name.endswith("first") else 0.2


def of_rank_one(network):
    """Each pair's product has rank one, in all of its directions."""
    for lora in network.adlrns_modules():
        for factor, dim in ((lora.lora_up, 1), (lora.lora_down, 0)):
            weight = factor.weight.data
            weight.copy_(weight.select(dim, 0).unsqueeze(dim) * torch.linspace(0.5, 2, lora.lora_dim).double().view(
                [-1 if each == dim else 1 for each in range(weight.dim())]
            ))  # fmt: skip


def test_the_default_is_one_bin_and_lycoris_s_own_lora():
    network = create(frozen(UNet()), frozen(TextEncoder()), dim=8)
    assert type(network) is PlainNetwork
    assert (network.settings.bins, network.settings.budget, network.settings.probe_every) == (1, 4, 4)
    assert all(isinstance(lora, LoConModule) and lora.bypass_mode for lora in network.adlrns_modules())
    plain = create(frozen(UNet()), frozen(TextEncoder()), dim=8, module="hina_kohya.lycoris", algo="lora")
    assert network.state_dict().keys() - {MEMORY} == plain.state_dict().keys()


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("how", [None, True, False], ids=["plain", "reentrant", "non-reentrant"])
def test_sums_are_those_of_hidden_values_and_of_their_gradients(conv, how):
    torch.manual_seed(0)
    layer, shape = (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 6, 6)) if conv else (nn.Linear(4, 6), (2, 5, 4))
    module = PlainModule("lora_unet_a", layer.double().requires_grad_(False), 1.0, 3, 6).double().train()
    nn.init.normal_(module.lora_up.weight)
    module.apply_to()
    module.multiplier = 0.5
    module.watch.measuring = True
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    run = layer if how is None else lambda x: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=how)
    run(x).sin().sum().backward()
    with torch.no_grad():
        hidden = module.lora_down(x)
    hidden.requires_grad_()
    (layer._lycoris_original_forward(x).detach() + module.lora_up(hidden) * 2 * 0.5).sin().sum().backward()
    rows = [(each.movedim(1, -1) if conv else each).reshape(-1, 3) for each in (hidden.detach(), hidden.grad)]
    torch.testing.assert_close(module.grams, torch.stack([each.T @ each for each in rows]).float())
    assert module.positions == len(rows[0])


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_step_that_overflows_is_no_statistic(value):
    module = PlainModule("lora_unet_a", nn.Linear(4, 6), 1.0, 3, 3).train()
    module.watch.measuring = True
    module.apply_to()
    for factor in (1.0, value):
        (module.org_module[0](torch.randn(2, 4)) * factor).sum().backward()
        before = module.grams.clone()
        assert before.isfinite().all()
    assert module.grams[0].any()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_contributes_nothing_is_dropped_and_the_rest_trains_on(optimizer):
    unet = frozen(UNet())
    network = create(unet, dim=4, budget=1, warmup=3, probe_every=1)
    of_rank_one(network)
    params = list(network.parameters())
    train(unet, network, 2, optimizer=still(network))
    x, timesteps = batch()
    before = unet(x, timesteps).detach()
    made = OPTIMIZERS[optimizer](list(network.named_parameters()) if "Hina" in optimizer else params)
    for group in made.param_groups:
        group["lr"] = 0.0
    train(unet, network, 1, optimizer=made)
    assert set(ranks(network).values()) == {1}
    torch.testing.assert_close(unet(x, timesteps), before, rtol=1e-5, atol=1e-6)
    assert [id(param) for param in network.parameters()] == [id(param) for param in params]
    for group in made.param_groups:
        group["lr"] = 1e-2
    for lora in network.adlrns_modules():
        for layer in (lora.lora_up, lora.lora_down):
            assert 1 in (layer.weight.shape[0], layer.weight.shape[1])
        assert float(lora.alpha) / lora.lora_dim == pytest.approx(lora.scale)
    state = {id(param): made.state[param] for param in params}
    for param in params:
        for value in state[id(param)].values():
            assert not isinstance(value, torch.Tensor) or value.numel() < 40
    losses = []
    for seed in range(30):
        losses.append(float(loss(unet)))
        train(unet, network, 1, seed=seed, optimizer=made)
    assert float(loss(unet)) < losses[0]


def loss(unet):
    x, timesteps = batch(seed=9)
    with torch.no_grad():
        return (unet(x, timesteps) - x * (timesteps / 1000).view(-1, 1, 1, 1) - x.flip(1)).square().mean()


def test_the_best_directions_stay_whichever_module_they_are_in():
    """What is kept is worth more for its bytes than what is not, but for the last bytes that are left over."""
    unet = frozen(UNet())
    network = create(unet, frozen(TextEncoder()), dim=6, budget=2.5, warmup=3, probe_every=1)
    optimizer = still(network)
    train(unet, network, 2, optimizer=optimizer)
    for lora in network.adlrns_modules():
        lora.forget = lambda: None  # so that the sums can be looked at afterwards
    budget = network.budget()
    wide = {lora.lora_name: lora for lora in network.adlrns_modules()}
    factors = {name: (lora.lora_up.weight.detach().clone(), lora.lora_down.weight.detach().clone())
               for name, lora in wide.items()}  # fmt: skip
    train(unet, network, 1, optimizer=optimizer)
    spectra, products = {}, {}
    for name, lora in wide.items():
        up, down = factors[name]
        found = choice.candidates(name, up, down, choice.Sums(lora.grams, lora.positions), 1, 6) \
            if lora.grams is not None else None  # fmt: skip
        if found is not None:
            spectra[name] = found.spectrum
            products[name] = (up.flatten(1) @ found.basis[0][:, : lora.lora_dim]) @ (
                found.basis[1][: lora.lora_dim] @ down.flatten(1)
            )
    assert spectra.keys() == {"lora_unet_block_conv", "lora_unet_block_first", "lora_unet_block_second"}
    for name, expected in products.items():
        up, down = wide[name].lora_up.weight.flatten(1), wide[name].lora_down.weight.flatten(1)
        torch.testing.assert_close(up @ down, expected)
    gains = {name: each.values.square() / each.cost for name, each in spectra.items()}
    kept = [float(gains[name][place]) for name in gains for place in range(1, wide[name].lora_dim)]
    dropped = [
        (float(gains[name][wide[name].lora_dim]), spectra[name].cost) for name in gains if wide[name].lora_dim < 6
    ]
    spent = sum(each.bytes(wide[name].lora_dim) for name, each in spectra.items())
    text = wide["lora_te_mlp_fc1"]
    spent += choice.module_bytes("lora_te_mlp_fc1", text.lora_up.weight, text.lora_down.weight) + 24 * text.lora_dim
    assert 0 < spent <= budget
    assert len(set(ranks(network).values())) > 1
    best = max(gain for gain, _ in dropped)
    assert best <= min(kept) or all(cost > budget - spent for gain, cost in dropped if gain > min(kept))


def test_a_budget_in_bytes_is_one_of_the_file(tmp_path, caplog):
    unet = frozen(UNet())
    network = create(unet, dim=8, budget="1.5KB", warmup=2)
    train(unet, network, 3)
    file = tmp_path / "lora.safetensors"
    network.save_weights(str(file), torch.float16, None)
    with safe_open(file, "pt") as opened:
        note = opened.metadata()
    metadata = len(json.dumps({"__metadata__": note}, separators=(",", ":")))
    assert 1500 - 250 < os.path.getsize(file) - metadata <= 1500
    assert json.loads(note["hina_adlrns"])["budget"] == "1.5KB"
    caplog.clear()
    network.save_weights(str(tmp_path / "wide.safetensors"), None, None)
    assert "saved in float32, twice the budget of 1.5KB; write save_precision=fp16" in caplog.text


def test_a_budget_that_pays_for_all_keeps_all():
    unet = frozen(UNet())
    network = create(unet, dim=3, budget="1MB", warmup=2)
    train(unet, network, 3)
    assert network.chosen
    assert set(ranks(network).values()) == {3}


def test_without_knowledge_it_is_a_lora_of_one_rank():
    unet = frozen(UNet())
    network = create(unet, dim=6, budget=2, warmup=2)
    for lora in network.adlrns_modules():
        nn.init.zeros_(lora.lora_up.weight)
    train(unet, network, 2, optimizer=still(network))
    assert set(ranks(network).values()) == {2}


@pytest.mark.usefixtures("forked_python")
@pytest.mark.slow
def test_the_file_is_a_plain_lora_for_lycoris(tmp_path):
    unet, text = frozen(UNet()), frozen(TextEncoder())
    network = create(unet, text, dim=6, budget=2, warmup=2)
    uneven(network)
    train(unet, network, 4)
    assert len(set(ranks(network).values())) > 1
    file = tmp_path / "lora.safetensors"
    network.save_weights(str(file), None, {"ss_a": "b"})
    tensors = load_file(file)
    assert {key.partition(".")[2] for key in tensors} == {"lora_up.weight", "lora_down.weight", "alpha"}
    assert {key.partition(".")[0]: len(each) for key, each in tensors.items() if "down" in key} == ranks(network)
    x, timesteps = batch()
    expected = unet(x, timesteps)
    code = (
        "import sys, torch\n"
        "from hina_kohya.adlrns import create_network_from_weights\n"
        "from tests.support.small_networks import TextEncoder, UNet, batch, frozen\n"
        "unet, text = frozen(UNet()), frozen(TextEncoder())\n"
        "network, _ = create_network_from_weights(1.0, sys.argv[1], None, text, unet)\n"
        "assert len(network.unet_loras) == 3 and len(network.text_encoder_loras) == 1\n"
        "network.apply_to(text, unet, True, True)\n"
        "network.double().eval()\n"
        "torch.save(unet(*batch()), sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(file), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "."})  # a process that knows no preset
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected.detach(), rtol=1e-6, atol=1e-6)

    other = frozen(UNet())
    resumed = create(other, frozen(TextEncoder()), dim=6, budget=2, warmup=2)
    assert resumed.load_weights(str(file)) == {}
    assert resumed.chosen
    assert ranks(resumed) == ranks(network)
    torch.testing.assert_close(other(x, timesteps), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"has rank [46] in the file and at most 2 here; write network_dim=[46]"):
        create(frozen(UNet()), frozen(TextEncoder()), dim=2).load_weights(str(file))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("at", [2, 5, 6, 8])
def test_a_state_goes_on_by_the_bit(at, optimizer):
    """Before anything is measured, while it is, at the choice, and after it."""

    def begin():
        unet = frozen(UNet())
        network = create(unet, dim=6, budget=2, warmup=6, probe_every=2)
        uneven(network)
        return unet, network, OPTIMIZERS[optimizer](list(network.named_parameters()) if "Hina" in optimizer
                                                    else list(network.parameters()))  # fmt: skip

    def train_on(unet, network, made, steps):
        for number in steps:
            train(unet, network, 1, seed=number, optimizer=made)

    whole, first, second = begin(), begin(), begin()
    train_on(*whole, range(10))
    train_on(*first, range(at))
    second[1].load_state_dict({name: each.detach().clone() for name, each in first[1].state_dict().items()})
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    assert ranks(second[1]) == ranks(first[1])
    train_on(*second, range(at, 10))
    for name, tensor in whole[1].state_dict().items():
        assert second[1].state_dict()[name].equal(tensor), name
    assert len(set(ranks(second[1]).values())) > 1


def test_a_state_of_another_network_is_refused():
    network = create(frozen(UNet()), dim=4)
    with pytest.raises(ValueError, match="saved with another network_dim or other modules"):
        create(frozen(UNet()), dim=3).load_state_dict({MEMORY: network.state_dict()[MEMORY]}, False)


def test_steps_are_the_optimizer_s_and_others_do_not_count():
    unet = frozen(UNet())
    network = create(unet, dim=4, budget=2, warmup=3)
    elsewhere = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    optimizer = still(network)
    for _ in range(2):
        for _ in range(3):  # gradient accumulation
            network.on_step_start(None, unet)
            unet(*batch()).square().mean().backward()
            elsewhere.step()
        optimizer.step()
        optimizer.zero_grad()
    assert network.adlrns_step == 2
    assert not network.chosen
    train(unet, network, 1, optimizer=optimizer)
    assert network.chosen
    assert steps.is_told(network)
    network.on_step_start(None, unet)
    assert not steps.is_told(network)


def test_only_some_steps_measure():
    unet = frozen(UNet())
    network = create(unet, dim=4, warmup=20)
    optimizer, seen = still(network), []
    for _ in range(19):
        before = network.adlrns_modules()[0].positions
        train(unet, network, 1, optimizer=optimizer)
        seen.append(network.adlrns_modules()[0].positions > before)
    assert [number for number, measured in enumerate(seen) if measured] == [11, 15]  # and 19, the last
    network.on_step_start(None, unet)
    assert network.watch.measuring


def test_saved_before_the_choice_it_has_all_directions_and_says_so(tmp_path, caplog):
    unet = frozen(UNet())
    network = create(unet, dim=4, warmup=5)
    with caplog.at_level(logging.WARNING, "hina_kohya"):
        network.on_step_start(None, unet)
        network.save_weights(str(tmp_path / "a.safetensors"), None, None)
        assert "with no step seen of an optimizer that runs torch's step hooks" in caplog.text
        train(unet, network, 1)
        network.save_weights(str(tmp_path / "b.safetensors"), None, None)
    assert "adlrns: saved in the warmup of 5 steps, with all directions" in caplog.text
    assert {len(each) for key, each in load_file(tmp_path / "b.safetensors").items() if "down" in key} == {4}


def test_norms_that_were_cut_do_not_change_at_the_choice():
    """LyCORIS keeps the factor of `scale_weight_norms` beside the factors."""
    unet = frozen(UNet())
    network = create(unet, dim=4, budget=1, warmup=2)
    of_rank_one(network)
    optimizer = still(network)
    train(unet, network, 1, optimizer=optimizer)
    network.apply_max_norm_regularization(0.5, "cpu")
    x, timesteps = batch()
    before = unet(x, timesteps).detach()
    train(unet, network, 1, optimizer=optimizer)
    assert network.chosen
    torch.testing.assert_close(unet(x, timesteps), before, rtol=1e-5, atol=1e-6)


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_after_the_choice_a_step_is_lycoris_s_bypass():
    counts = []
    for network_of in (
        lambda unet: create(unet, dim=4, budget=2, warmup=2),
        lambda unet: create(unet, dim=2, module="hina_kohya.lycoris", algo="lora", bypass_mode=True),
    ):
        unet = frozen(UNet())
        network = network_of(unet)
        train(unet, network, 3, optimizer=still(network))
        x, timesteps = batch()
        with Ops() as ops:
            unet(x, timesteps).square().mean().backward()
        counts.append(ops.count)
    assert counts[0] == counts[1] > 20


def test_convolutions_without_a_bypass_are_refused():
    for layer in (
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 6, 3, dilation=2),
        nn.Conv2d(4, 6, 3, padding_mode="circular"),
    ):
        with pytest.raises(ValueError, match="has no bypass in LyCORIS; exclude the layer in the preset"):
            PlainModule("lora_unet_a", layer)


RANKS = """
import os, sys, torch, torch.distributed as dist
from tests.support.small_networks import UNet, create, frozen
rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
unet = frozen(UNet())
network = create(unet, dim=6, warmup=4, probe_every=1, budget=3)
network.adlrns_modules()[0].lora_up.weight.data *= 5
held = torch.nn.parallel.DistributedDataParallel(network)  # as sd-scripts does, which reduces gradients by itself
optimizer = torch.optim.Adam(network.parameters(), 1e-2)
torch.manual_seed(rank)
for step in range(7):
    network.on_step_start(None, unet)
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64) * (1 + rank)
    (unet(x, torch.zeros(3)) - x.flip(1)).square().mean().backward()
    for parameter in network.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    optimizer.zero_grad()
chosen = [lora.lora_dim for lora in network.adlrns_modules()], [p.tolist() for p in network.parameters()]
with open(f"{file}.{rank}", "w") as out:
    print(len(set(chosen[0])) > 1, chosen, file=out)
os._exit(0)  # see tests/core/test_ranks.py
"""


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
def test_two_processes_choose_alike(tmp_path):
    first, second = outputs(RANKS, tmp_path)
    assert first == second
    assert first.startswith("True ([")


def test_few_shapes_on_an_sdxl_lora():
    """Layers of one shape are stepped together; with any rank there would be a hundred and more shapes."""
    shapes = dict(SETS["sdxl-lora-r16"]())
    modules = sorted({name.partition(".lora_")[0] for name in shapes})
    generator = torch.Generator().manual_seed(0)
    spectra, sides = [], []
    for module in modules:
        up, down = (next(shape for name, shape in shapes.items() if name.startswith(f"{module}.lora_{end}"))
                    for end in ("up", "down"))  # fmt: skip
        size, fall = (
            torch.randn((), generator=generator).mul(0.7).exp(),
            0.05 + 0.3 * torch.rand((), generator=generator),
        )
        values = (size * (-fall * torch.arange(16)).exp()).double()
        spectra.append(choice.spectrum(module, torch.empty(up), torch.empty(down), values, 1, 16))
        sides.append((up[0], down[1]))

    def shapes_of(spectra):
        """(ranks, how many shapes the factors then have)"""
        ranks = choice.ranks(spectra, choice.of_rank(spectra, 8))
        ups = {("up", m, rank) for (m, _), rank in zip(sides, ranks, strict=True)}
        return ranks, len(ups | {("down", n, rank) for (_, n), rank in zip(sides, ranks, strict=True)})

    ranks, few = shapes_of(spectra)
    assert set(ranks) <= {1, 2, 4, 8, 16}
    free = [dc.replace(each, steps=()) for each in spectra]
    any_ranks, many = shapes_of(free)
    assert few < 45
    assert many > 100
    assert level.energy(spectra, ranks) > level.energy(free, any_ranks) - 0.003
