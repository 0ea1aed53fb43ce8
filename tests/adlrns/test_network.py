"""The network: its arguments, the timestep of every kind of model, refreshes, two processes, resuming."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hina_kohya.adlrns import create_network_from_weights
from hina_kohya.adlrns.adapter import memory
from tests.support.ranks import outputs
from tests.support.small_networks import TextEncoder, UNet, batch, create, frozen, randomise, train


def tables(network):
    return {lora.lora_name: lora.adlrns_kept.clone() for lora in network.adlrns_modules()}


@pytest.mark.parametrize("dim", [4, 8])
def test_defaults(dim):
    network = create(frozen(UNet()), frozen(TextEncoder()), dim=dim, conv_dim=3, bins=6)
    settings = network.settings
    assert (settings.r_min, settings.r_max, settings.budget, settings.bins) == (1, dim, dim / 2, 6)
    shapes = {lora.lora_name: tuple(lora.adlrns_kept.shape) for lora in network.adlrns_modules()}
    assert shapes == {
        "lora_te_mlp_fc1": (1, dim), "lora_unet_block_conv": (6, 3),
        "lora_unet_block_first": (6, dim), "lora_unet_block_second": (6, dim),
    }  # fmt: skip
    assert all(table.all() for table in tables(network).values())  # the warmup


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"budgett": 3}, "unknown 'budgett'; did you mean budget"),
        ({"zzz": 3}, "unknown 'zzz'; known: .*budget.*conv_dim.*ADLRNS reads r_min, r_max, budget"),
        ({"r_max": 5}, "r_max = 5 is above network_dim = 4; write r_max=4"),
        ({"r_min": 3, "r_max": 2}, "r_min = 3 is above r_max = 2"),
        ({"budget": 5}, r"budget = 5 is outside \[r_min, r_max\] = \[1, 4\]"),
        ({"budget": 0.5}, r"budget = 0.5 is outside \[r_min, r_max\]"),
        ({"budget": -1}, r"budget = -1 is outside \(0, inf\)"),
        ({"budget": "nan"}, "budget = 'nan' is not a number"),
        ({"bins": 0}, r"bins = 0 is outside \[1, 256\]"),
        ({"bins": 2.5}, "bins = 2.5 must be a whole number"),
        ({"refresh_every": 20, "bins": 1}, "refresh_every = 20 is for bins above 1; remove it, or write bins=6"),
        ({"granularity": "batch", "bins": 1}, "granularity = 'batch' is for bins above 1"),
        ({"r_min": 0, "bins": 1}, "r_min = 0 is for bins above 1; write r_min=1"),
        ({"warmup": 0, "bins": 1}, "warmup = 0 leaves nothing to choose ranks by; write warmup=300"),
        (
            {"budget": "20MB"},
            "budget = 20MB is the size of a file, which with bins = 6 has all directions; write bins=1",
        ),
        ({"budget": "20 parsecs", "bins": 1}, "budget = '20 parsecs' is not a number and no size; write budget=8 or"),
        ({"budget": 5, "bins": 1}, r"budget = 5 is outside \[r_min, r_max\] = \[1, 4\]; it is a rank; in bytes"),
        (
            {"budget": "1KB", "bins": 1},
            r"budget = 1KB is less than a file of 3 modules at r_min = 1; write budget=0.01MB",
        ),
        ({"mode": "max"}, "mode = 'max' must be cap or spend"),
        ({"budget_unit": "mJ"}, "budget_unit = 'mJ' must be rank or macs; no counter of energy"),
        ({"budget_unit": "ms"}, "must be rank or macs; an adapter's time does not follow its rank"),
        ({"dim": -3}, "network_dim = -3 must be at least 1"),
        ({"conv_dim": "many"}, "conv_dim = 'many' must be a whole number"),
        ({"conv_dim": -1}, "conv_dim = '-1' must be at least 1"),
        ({"algo": "loha"}, "algo = 'loha' is not ADLRNS"),
        ({"use_tucker": True}, "adlrns has no use_tucker"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        create(frozen(UNet()), **{"bins": 6, **arguments})


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["rank", "macs"])
@pytest.mark.parametrize("mode", ["cap", "spend"])
def test_refreshes_keep_the_budget(mode, unit, caplog):
    caplog.set_level("INFO", "hina_kohya")
    unet = frozen(UNet())
    network = create(
        unet, dim=6, budget=2.5, bins=3, warmup=4, refresh_every=3, probe_every=1, mode=mode, budget_unit=unit
    )
    train(unet, network, 4)
    assert all(table.all() for table in tables(network).values())
    seen = set()
    for _ in range(4):
        train(unet, network, 3)
        shares = network.seen / network.seen.sum()
        cost = network._costs(network.adlrns_modules())
        kept = torch.stack([table.sum(1).double() for table in tables(network).values()], 1)
        spent = float((kept * cost * shares[:, None]).sum())
        assert spent <= 2.5 * (1 + 1e-6)
        assert kept.min() >= 1
        seen.add(tuple(kept.flatten().tolist()))
    assert any(len(set(row)) > 1 for row in seen)  # not uniform
    if mode == "spend":
        assert spent > 2.5 - float(cost.max())
    assert caplog.text.count("adlrns step") == 4
    first, conv, last = (
        lora.macs()
        for lora in sorted(network.adlrns_modules(), key=lambda each: each.lora_name != "lora_unet_block_first")
    )
    assert (first, {conv, last}) == (6 + 16, {4 * 9 + 6, 16 + 4})
    if unit == "macs":
        assert network.positions == dict.fromkeys(tables(network), 36.0)


@pytest.mark.slow
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_text_encoder_that_is_not_trained_is_not_chosen_for(warmup):
    unet, text = frozen(UNet()), frozen(TextEncoder())
    network = create(unet, text, budget=2, bins=2, warmup=warmup, refresh_every=2, probe_every=1, apply=False)
    network.apply_to(text, unet, False, True)
    train(unet, network.double().train(), 5)
    assert "lora_te_mlp_fc1" not in tables(network)
    assert not any(table.all() for table in tables(network).values())


def test_without_warmup_states_begin_with_the_same_prefix():
    network = create(frozen(UNet()), frozen(TextEncoder()), dim=6, bins=6, warmup=0, budget=2)
    for table in tables(network).values():
        assert table.tolist() == [[True] * 2 + [False] * 4] * len(table)


@pytest.mark.slow
def test_it_learns_more_with_the_same_mean_rank():
    """The sign of the adapter that is right depends on the timestep: what one table for all cannot do."""
    losses = {}
    for bins in (1, 4):
        unet = frozen(UNet())
        more = {} if bins == 1 else {"refresh_every": 30}
        network = create(unet, dim=8, budget=2, bins=bins, warmup=60, probe_every=1, **more)
        for lora in network.adlrns_modules():
            torch.nn.init.zeros_(lora.lora_up.weight)  # as every training begins
        optimizer = torch.optim.Adam(network.parameters(), 2e-2)
        torch.manual_seed(0)
        tail = []
        for step in range(300):
            network.on_step_start(None, unet)
            x, timesteps = torch.randn(16, 4, 4, 4, dtype=torch.float64), torch.randint(0, 1000, (16,))
            target = x + x * torch.where(timesteps < 500, 1.0, -1.0).view(-1, 1, 1, 1)
            loss = (unet(x, timesteps) - target).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            tail += [float(loss.detach())] * (step >= 270)
        if bins > 1:
            ranks = torch.stack([table.double().mean(0) for table in tables(network).values()]).sum(1)
            assert float(ranks.mean()) <= 2 * 1.05
        losses[bins] = sum(tail) / len(tail)
    assert losses[4] < 0.8 * losses[1]


@pytest.mark.slow
def test_two_networks_do_not_share_states():
    first, second = frozen(UNet()), frozen(UNet())
    networks = [create(unet, bins=bins) for unet, bins in ((first, 3), (second, 5))]
    for network in networks:
        randomise(network)
    x, timesteps = batch()
    expected = first(x, timesteps)
    second(x, timesteps.flip(0))
    assert [len(network.unet_loras[0].adlrns_kept) for network in networks] == [3, 5]
    assert networks[0].adlrns_states is not networks[1].adlrns_states
    assert networks[0].adlrns_states.batch(True).states != networks[1].adlrns_states.batch(True).states
    assert first(x, timesteps).equal(expected)


def test_restored_nothing_is_left():
    unet = frozen(UNet())
    x, timesteps = batch()
    before = unet(x, timesteps)
    network = create(unet, bins=6)
    assert not unet(x, timesteps).equal(before)
    network.restore()
    assert unet(x, timesteps).equal(before)
    assert not unet._forward_pre_hooks
    assert not unet._forward_hooks


def test_param_groups_and_lora_plus():
    unet = frozen(UNet())
    network = create(unet, frozen(TextEncoder()), loraplus_lr_ratio=4)
    groups, descriptions = network.prepare_optimizer_params(1e-4, 1e-3, 1e-3)
    assert sorted(zip(descriptions, [group["lr"] for group in groups], strict=True)) == [
        ("textencoder", 1e-4), ("textencoder plus", 4e-4), ("unet", 1e-3), ("unet plus", 4e-3),
    ]  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters())) == 8
    assert network.apply_max_norm_regularization(0.1, "cpu")[0] == 4


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_saved_and_resumed(tmp_path, dtype):
    unet, text = frozen(UNet()), frozen(TextEncoder())
    network = create(unet, text, bins=3, warmup=0, refresh_every=2, probe_every=1)
    train(unet, network, 5)
    randomise(network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items() if key != memory.NAME}
    file = str(tmp_path / "lora.safetensors")
    network.save_weights(file, dtype, {"ss_a": "b"})
    assert all(network.state_dict()[key].equal(tensor) for key, tensor in before.items())
    with safe_open(file, "pt") as opened:
        note = json.loads(opened.metadata()["hina_adlrns"])
        assert opened.metadata()["ss_a"] == "b"
    assert (note["version"], note["bins"], note["budget"]) == (1, 3, 2)
    saved = load_file(file)
    assert set(saved) == set(before)
    name = "lora_unet_block_first"
    assert (saved[f"{name}.adlrns_stats"][0].float().mean(0).diff() <= 0.02).all()
    assert not saved[f"{name}.lora_down.weight"].equal(before[f"{name}.lora_down.weight"].to(dtype))

    x, timesteps = batch()
    expected = unet(x, timesteps)
    tolerance = {} if dtype is None else {"rtol": 0.05, "atol": 0.05}
    other, other_text = frozen(UNet()), frozen(TextEncoder())
    resumed = create(other, other_text, bins=3)
    assert resumed.load_weights(file) == {}
    torch.testing.assert_close(other(x, timesteps), expected, **tolerance)
    ranks = {key: table.sum(1).tolist() for key, table in tables(network).items()}
    assert {key: table.sum(1).tolist() for key, table in tables(resumed).items()} == ranks

    third, third_text = frozen(UNet()), frozen(TextEncoder())
    made, _ = create_network_from_weights(1.0, file, None, third_text, third, budget="1.5")
    made.apply_to(third_text, third, True, True)
    made.double().train()
    assert (made.settings.bins, made.settings.r_max, made.settings.budget) == (3, 4, 1.5)
    torch.testing.assert_close(third(x, timesteps), expected, **tolerance)
    with pytest.raises(ValueError, match="bins = 5 does not fit the file's table; write bins=3"):
        create_network_from_weights(1.0, file, None, third_text, third, bins="5")
    with pytest.raises(ValueError, match=r"this network's \(6, 4\); write bins=3 and network_dim=4"):
        create(frozen(UNet()), bins=6).load_weights(file)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 4, 6, 7])
def test_a_state_goes_on_by_the_bit(at):
    """In the warmup, at a refresh, and between two, when sums are half full."""

    def begin():
        unet = frozen(UNet())
        network = create(unet, bins=3, budget=2, warmup=5, refresh_every=3, probe_every=2)
        return unet, network, torch.optim.Adam(network.parameters(), 1e-2)

    def train_on(unet, network, optimizer, steps):
        for step in steps:
            train(unet, network, 1, seed=step, optimizer=optimizer)

    whole, first, second = begin(), begin(), begin()
    train_on(*whole, range(11))
    train_on(*first, range(at))
    second[1].load_state_dict(copy.deepcopy(first[1].state_dict()))
    second[2].load_state_dict(copy.deepcopy(first[2].state_dict()))
    train_on(*second, range(at, 11))
    for name, tensor in whole[1].state_dict().items():
        assert second[1].state_dict()[name].equal(tensor), name
    assert second[1].adlrns_step == 11
    assert not any(table.all() for table in tables(second[1]).values())
    with pytest.raises(ValueError, match="saved with other bins, network_dim or modules"):
        create(frozen(UNet()), bins=4).load_state_dict({memory.NAME: first[1].state_dict()[memory.NAME]}, False)


@pytest.mark.slow
def test_a_plain_lora_resumes_too(tmp_path):
    unet = frozen(UNet())
    network = create(unet, module="hina_kohya.lycoris", algo="locon")
    network.save_weights(str(tmp_path / "plain.safetensors"), None, None)
    x, timesteps = batch()
    expected = unet(x, timesteps)
    other = frozen(UNet())
    assert create(other, bins=6).load_weights(str(tmp_path / "plain.safetensors")) == {}
    torch.testing.assert_close(other(x, timesteps), expected, rtol=1e-6, atol=1e-6)


def test_statistics_survive_the_text_encoder_s_other_batch():
    unet, text = frozen(UNet()), frozen(TextEncoder())
    network = create(unet, text, bins=3, warmup=0, refresh_every=1, probe_every=1)
    for rows in (5, 10, 3):
        network.on_step_start(text, unet)
        x, timesteps = batch()
        told = text(torch.randn(rows, 2, 5, dtype=torch.float64))
        (unet(x, timesteps) + told.mean()).square().mean().backward()
        network.refresh()
    assert float(network.ledger.count[0, 0]) > 4  # 0.3 of the first alone


RANKS = """
import os, sys, torch, torch.distributed as dist
from tests.support.small_networks import UNet, create, frozen
from tests.adlrns.test_network import tables
rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
unet = frozen(UNet())
network = create(unet, bins=3, warmup=2, refresh_every=2, probe_every=1, budget=2)
optimizer = torch.optim.Adam(network.parameters(), 1e-2)
torch.manual_seed(rank)
for step in range(7):
    network.on_step_start(None, unet)
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64) * (1 + rank)
    timesteps = torch.randint(0, 300, (3,)) + 600 * rank  # the processes never see each other's states
    (unet(x, timesteps) - x.flip(1)).square().mean().backward()
    for parameter in network.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    optimizer.zero_grad()
found = [table.tolist() for table in tables(network).values()], [p.tolist() for p in network.parameters()]
with open(f"{file}.{rank}", "w") as out:
    print(all(table.all() for table in tables(network).values()), found, file=out)
os._exit(0)  # see tests/core/test_ranks.py
"""


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
def test_two_processes_choose_alike(tmp_path):
    first, second = outputs(RANKS, tmp_path)
    assert first == second
    assert first.startswith("False ([[")


def test_sd_scripts_finds_no_other_argument_in_the_way():
    network = create(
        frozen(UNet()), conv_dim=2, conv_alpha=1, dropout=0.1, rank_dropout=0.1, weight_decay=0.01, wd_roles="default"
    )
    groups, _ = network.prepare_optimizer_params(1e-4, 1e-3, 1e-3)
    assert [group["weight_decay"] for group in groups] == [0.01]  # the hooks' options
    assert sorted(lora.lora_dim for lora in network.unet_loras) == [2, 4, 4]
