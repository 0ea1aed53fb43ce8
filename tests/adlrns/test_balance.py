"""The balanced basis against the singular value decomposition it is said to be, and in a network."""

import pytest
import torch
from safetensors.torch import load_file

from hina_kohya.adlrns.adapter.balance import balanced
from hina_kohya.adlrns.adapter.execution import Directions
from hina_kohya.adlrns.network import create_network_from_weights
from tests.support.small_networks import UNet, batch, create, frozen, train


def pair(rank=5, out=12, inner=9, seed=0):
    """Factors and the square roots of two metrics, none of them simple."""
    random = torch.Generator().manual_seed(seed)
    sizes = (out, rank), (rank, inner), (out, out), (inner, inner)
    return [torch.randn(size, generator=random, dtype=torch.float64) for size in sizes]


def grams(up, down, after, before):
    """C and S, where E[x x^T] = before before^T and E[g g^T] = after after^T."""
    hidden, sensitivity = down @ before, up.T @ after
    return torch.stack([hidden @ hidden.T, sensitivity @ sensitivity.T])


def test_directions_are_singular_vectors_in_the_metric_of_the_loss():
    up, down, after, before = pair()
    basis, inverse = balanced(grams(up, down, after, before), down)
    torch.testing.assert_close(basis @ inverse, torch.eye(5, dtype=torch.float64))
    left, right = after.T @ up @ basis, inverse @ down @ before
    expected = torch.linalg.svdvals(after.T @ up @ down @ before)
    torch.testing.assert_close(left.norm(dim=0) * right.norm(dim=1), expected[:5], rtol=1e-6, atol=0)
    for each in (left.T @ left, right @ right.T):
        torch.testing.assert_close(each, each.diagonal().diag(), rtol=0, atol=1e-6 * float(each.max()))
    for rank in range(5):  # Eckart and Young: nothing of this rank is nearer
        rest = after.T @ up @ down @ before - left[:, :rank] @ right[:rank]
        assert float(rest.norm()) == pytest.approx(float(expected[rank:].norm()), rel=1e-6)


def test_rows_of_down_keep_their_mean_length():
    up, down, after, before = pair()
    _, inverse = balanced(grams(up, down, after, before), down)
    torch.testing.assert_close((inverse @ down).norm(dim=1), down.square().sum(1).mean().sqrt().expand(5))


def test_the_units_of_both_sums_do_not_matter():
    up, down, after, before = pair()
    sums = grams(up, down, after, before)
    one, other = balanced(sums, down), balanced(sums * torch.tensor([1e6, 1e-12]).double()[:, None, None], down)
    torch.testing.assert_close(one.abs(), other.abs(), rtol=1e-5, atol=1e-7)  # signs are free


def test_a_direction_that_does_nothing_is_the_last():
    up, down, after, before = pair()
    up[:, 2] = 0
    basis, inverse = balanced(grams(up, down, after, before), down)
    product = up @ basis[:, :4] @ inverse[:4] @ down
    assert float((product - up @ down).norm()) < 1e-3 * float((up @ down).norm())


@pytest.mark.parametrize(("out", "inner"), [(12, 3), (3, 12), (4, 1)])
def test_more_directions_than_channels_leave_the_product_and_no_huge_rows(out, inner):
    up, down, after, before = pair(6, out, inner)
    made = balanced(grams(up, down, after, before), down)
    basis, inverse = made.float()
    torch.testing.assert_close(
        (up.float() @ basis) @ (inverse @ down.float()), (up @ down).float(), rtol=1e-4, atol=1e-4
    )
    moved = down + 1e-2 * torch.randn(down.shape, generator=torch.Generator().manual_seed(1))
    assert float((made[1] @ moved).norm(dim=1).max()) < 1000 * float(down.norm(dim=1).mean())


@pytest.mark.parametrize("broken", [0, float("nan"), float("inf")])
def test_sums_that_say_nothing_are_no_basis(broken):
    up, down, after, before = pair()
    sums = grams(up, down, after, before)
    sums[1] *= broken
    assert balanced(sums, down) is None


def trained(steps, **arguments):
    unet = frozen(UNet())
    network = create(unet, bins=3, budget=2, refresh_every=3, **arguments)
    train(unet, network, steps)
    return unet, network


@pytest.mark.slow
def test_halfway_through_the_warmup_nothing_changes_but_the_directions():
    unet, network = trained(6, warmup=12)
    x, timesteps = batch()
    before = unet(x, timesteps)
    network.refresh()
    assert all(lora.basis is not None and lora.adlrns_kept.all() for lora in network.adlrns_modules())
    torch.testing.assert_close(unet(x, timesteps), before, rtol=1e-5, atol=1e-5)
    network.eval()
    torch.testing.assert_close(unet(x, timesteps), before, rtol=1e-5, atol=1e-5)
    assert not float(network.ledger.count.sum())  # of directions that are gone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warmup", "every", "balanced", "chosen"),
    [(12, 3, 6, 12), (12, 5, 10, 15), (7, 3, 6, 9), (6, 10, 3, 10), (2, 1, 1, 2)],
)
def test_it_is_halfway_and_the_choice_comes_at_the_first_refresh_after_the_warmup(warmup, every, balanced, chosen):
    unet = frozen(UNet())
    network = create(unet, bins=3, budget=2, warmup=warmup, refresh_every=every)
    lora, seen = network.adlrns_modules()[0], {}
    for step in range(17):
        train(unet, network, 1, seed=step)
        seen.setdefault("balanced", step) if lora.basis is not None else None
        seen.setdefault("chosen", step) if not lora.adlrns_kept.all() else None
    assert seen == {"balanced": balanced, "chosen": chosen}


def test_the_grams_are_those_of_hidden_values_and_their_gradients():
    unet = frozen(UNet())
    network = create(unet, bins=3, budget=2, warmup=12)
    seen, layer = {}, unet.block.first
    layer.register_forward_hook(lambda module, args, out: seen.update(x=args[0].detach(), out=out))
    network.on_step_start(None, unet)
    x, timesteps = batch()
    out = unet(x, timesteps).square().mean()
    seen["out"].retain_grad()
    out.backward()
    lora = next(each for each in network.adlrns_modules() if each.lora_name.endswith("first"))
    hidden = seen["x"].flatten(0, -2) @ lora.lora_down.weight.T * lora.scale
    gradient = seen["out"].grad.flatten(0, -2) @ lora.lora_up.weight * len(x)
    expected = torch.stack([hidden.T @ hidden, gradient.T @ gradient]).float()
    torch.testing.assert_close(lora.grams, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_a_prefix_of_trained_directions_does_more_than_before():
    """What a cut loses of the outputs, the same steps apart from the basis."""
    x, timesteps = batch()
    lost = []
    for balance in (False, True):
        unet, network = trained(30, warmup=1000)
        whole = unet(x, timesteps).detach()
        if balance:
            network.balance()
        for lora in network.adlrns_modules():
            kept = torch.zeros_like(lora.adlrns_kept)
            kept[:, :2] = True
            lora.set_table(kept, lora.adlrns_stats[0], lora.adlrns_stats[1])
        lost.append(float((unet(x, timesteps).detach() - whole).norm()))
    assert lost[1] < 0.5 * lost[0]


@pytest.mark.slow
def test_the_file_has_the_directions_and_training_the_parameters(tmp_path):
    unet, network = trained(13, warmup=5)
    x, timesteps = batch()
    expected = unet(x, timesteps)
    raw = {name: each.clone() for name, each in network.named_parameters()}
    network.save_weights(str(tmp_path / "lora.safetensors"), None, None)
    assert all(each.equal(raw[name]) for name, each in network.named_parameters())
    saved = load_file(tmp_path / "lora.safetensors")
    assert not any("basis" in key or key.startswith("adlrns") for key in saved)
    other = frozen(UNet())
    made, _ = create_network_from_weights(1.0, str(tmp_path / "lora.safetensors"), None, None, other)
    made.apply_to(None, other, False, True)
    made.double().train()
    torch.testing.assert_close(other(x, timesteps), expected, rtol=1e-5, atol=1e-5)
    # Into a network that has a basis of its own, which the file knows nothing of.
    assert network.load_weights(str(tmp_path / "lora.safetensors")) == {}
    torch.testing.assert_close(unet(x, timesteps), expected, rtol=1e-5, atol=1e-5)


def test_merged_it_is_the_product_in_its_basis():
    _, network = trained(6, warmup=12)
    lora = network.adlrns_modules()[0]
    before = lora.get_diff_weight()[0]
    network.refresh()
    torch.testing.assert_close(lora.get_diff_weight()[0], before, rtol=1e-5, atol=1e-5)


def test_a_table_in_force_stays():
    unet = frozen(UNet())
    network = create(unet, bins=3, budget=2, warmup=12, refresh_every=3)
    lora = network.adlrns_modules()[0]
    kept = torch.zeros_like(lora.adlrns_kept)
    kept[:, 0] = True
    lora.set_table(kept, lora.adlrns_stats[0], lora.adlrns_stats[1])
    train(unet, network, 7)
    assert network.balanced
    assert lora.basis is None
    assert network.adlrns_modules()[1].basis is not None


def test_bfloat16_keeps_basis_and_inverse_each_other_s():
    _, network = trained(7, warmup=12)
    lora = network.adlrns_modules()[1]
    whole = Directions(lora.lora_dim)
    expected = lora.lora_up.weight.float().flatten(1) @ lora.lora_down.weight.float().flatten(1)
    network.float()
    with torch.autocast("cpu", torch.bfloat16):
        up, down = lora.up(whole), lora.down(whole)
    torch.testing.assert_close(up.flatten(1) @ down.flatten(1), expected, rtol=1e-4, atol=1e-4)
