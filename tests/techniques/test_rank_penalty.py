"""The rank penalty through the real optimizer: against the full SVD of W, and what thresholding promises."""

from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.parameters.roles import resolve
from tests.oracles.adamw import AdamW
from tests.oracles.rank_penalty import RankPenalty, penalise, shrink, thresholds
from tests.support import promises
from tests.support.adam_chain import optimizer, run, starts
from tests.support.chains import STATES
from tests.support.oracle_runs import DECAY, PAIR_SHAPES, PAIRS, flat, gradients, rate
from tests.support.signals import signal
from tests.support.stepping import make_params, set_grads, train

OPTIONS = [{}, {"strength": 20.0}, {"strength": 5.0, "emphasis": 1.0}, {"strength": 3.0, "emphasis": 2.5}]


def close(mine, theirs):
    np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_oracle(options):
    """One pair starts with B = 0, as LoRA does, one with A = 0, as GLoRA's second."""
    grads = gradients(PAIR_SHAPES, PAIR_SHAPES, 40)
    zero = ("lora_unet_a.lora_up.weight", "lora_unet_b.lora_down.weight")
    final, _ = run("rank_penalty", PAIR_SHAPES, grads, zero, **options)
    for module in PAIRS:
        names = f"{module}.lora_down.weight", f"{module}.lora_up.weight"
        a, b = flat(starts(PAIR_SHAPES, zero), names)
        oracle = RankPenalty(AdamW(weight_decay=DECAY), AdamW(weight_decay=DECAY), **options)
        for step, by_name in enumerate(grads):
            a, b = oracle.step(a, b, *flat(by_name, names), rate(step))
        mine = flat(final, names)
        close(mine[0], a)
        close(mine[1], b)


def test_the_oracle_is_the_proximal_point():
    """No other matrix has a lower ||X - W||^2 / 2 + sum tau_i sigma_i(X), which is convex along the thresholds."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(6, 3)) @ rng.normal(size=(3, 5))
    tau = thresholds(np.linalg.svd(W, compute_uv=False)[:3], 0.1, 1.7)
    value = lambda X: np.sum((X - W) ** 2) / 2 + tau @ np.linalg.svd(X, compute_uv=False)[:3]
    best = shrink(W, 0.1, 1.7)
    U, sigma, Vt = np.linalg.svd(best)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(200):
            other = U[:, :3] @ np.diag(np.abs(sigma[:3] + size * rng.normal(size=3))) @ Vt[:3]
            turned = best + size * (U[:, :3] @ rng.normal(size=(3, 3)) @ Vt[:3])
            assert value(best) <= min(value(other), value(turned))


def test_equal_weights_are_singular_value_thresholding():
    W = np.random.default_rng(0).normal(size=(6, 5))
    sigma = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(thresholds(sigma, 0.1, 1.0), 0.1 * sigma[0])
    np.testing.assert_allclose(
        np.linalg.svd(shrink(W, 0.1, 1.0), compute_uv=False), np.maximum(sigma - 0.1 * sigma[0], 0)
    )


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def penalised(b, a, lr=0.1, **options):
    """B' of B [N, m, r] and A [N, r, n]."""
    technique = build("rank_penalty", **options)
    rates = torch.full((len(b), 1, 1), lr, dtype=torch.float64)
    s = signal(n=len(b), before=b, param=b, lr=rates, others=technique.publish(a).unsqueeze(1))
    out = technique.apply(s, {})
    assert out.param.dtype == b.dtype
    return out.param


STRONG = {"strength": 1.0, "emphasis": 1.5}


@pytest.mark.parametrize("shape", [(7, 3, 9), (3, 3, 3), (7, 1, 9), (2, 5, 9), (9, 5, 3), (1, 4, 4)], ids=str)
def test_what_thresholding_promises(shape):
    """Also where r is above m or n, as in LoKr: A is then rank-deficient."""
    m, r, n = shape
    b, a = noise(4, m, r), noise(4, r, n, seed=1)
    after = penalised(b, a, **STRONG)
    for i in range(4):
        close(after[i].numpy(), penalise(a[i].numpy(), b[i].numpy(), 0.1, 1.5))
    w, shrunk = b @ a, after @ a
    before, values = torch.linalg.svdvals(w), torch.linalg.svdvals(shrunk)
    assert (values <= before + 1e-12).all()
    assert (shrunk.norm(dim=(1, 2)) < w.norm(dim=(1, 2))).all()
    lost = (b - after).norm(dim=(1, 2))
    assert (lost <= b.norm(dim=(1, 2)) + 1e-12).all()
    torch.testing.assert_close(shrunk.mT @ w, (shrunk.mT @ w).mT)  # one set of singular vectors
    torch.testing.assert_close(shrunk @ w.mT, (shrunk @ w.mT).mT)


def test_the_gauge_does_not_matter():
    b, a = noise(4, 7, 3), noise(4, 3, 9, seed=1)
    change = noise(4, 3, 3, seed=2) + 3 * torch.eye(3, dtype=torch.float64)
    plain = penalised(b, a, **STRONG) @ a
    changed = penalised(b @ change.inverse(), change @ a, **STRONG) @ (change @ a)
    torch.testing.assert_close(plain, changed, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(plain, b @ a, rtol=1e-2)


def test_rows_and_columns_of_w_and_its_scale_do_not_matter():
    b, a = noise(4, 7, 3), noise(4, 3, 9, seed=1)
    random = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(7, generator=random), torch.randperm(9, generator=random)
    plain = penalised(b, a, **STRONG)
    torch.testing.assert_close(penalised(b[:, rows], a[:, :, columns], **STRONG), plain[:, rows])
    for scale in (1e-60, 1e60):
        torch.testing.assert_close(penalised(scale * b, a, **STRONG), scale * plain, rtol=1e-9, atol=0)


def test_it_lowers_the_rank_and_stops_there():
    b, a = noise(2, 8, 4), noise(2, 4, 9, seed=1)
    u, _, vt = torch.linalg.svd(b @ a)
    sigma = torch.tensor([1.0, 0.5, 1e-3, 1e-5], dtype=torch.float64)
    w = u[:, :, :4] * sigma @ vt[:, :4]
    b = w @ torch.linalg.pinv(a)
    values = torch.linalg.svdvals(penalised(b, a, lr=1.0, strength=0.01, emphasis=1.2) @ a)[:, :4]
    f = (1 - 0.01 * (1 / sigma) ** 1.2).clamp(min=0)
    torch.testing.assert_close(values, (sigma * f).expand(2, 4), rtol=1e-8, atol=1e-12)
    assert (f == 0).sum() == 2


def test_small_singular_values_are_seen_in_fp32():
    """The Gram matrices in fp32 would not know 1e-5 from 0 next to 1."""
    b = torch.diag(torch.tensor([1.0, 1e-3, 1e-5])).expand(1, 3, 3).contiguous()
    after = penalised(b, torch.eye(3).expand(1, 3, 3), lr=1e-3, strength=1e-2, emphasis=1.0)
    kept = 1 - 1e-5 / torch.tensor([1.0, 1e-3, 1e-5])
    torch.testing.assert_close(after[0].diagonal(), b[0].diagonal() * kept, rtol=1e-6, atol=1e-9)
    b, a = noise(1, 7, 3, dtype=torch.float32), noise(1, 3, 9, seed=1, dtype=torch.float32)
    a[0, 2] = a[0, 1] + 1e-4 * a[0, 2]
    after = penalised(b, a, lr=1e-3, strength=1.0, emphasis=1.5)
    expected = penalise(a[0].double().numpy(), b[0].double().numpy(), 1e-3, 1.5)
    assert np.linalg.norm(expected - b[0].numpy()) > 0.1 * b.norm()
    np.testing.assert_allclose(after[0].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_factors(dtype):
    b, a = noise(6, 7, 3, dtype=dtype), noise(6, 3, 9, seed=1, dtype=dtype)
    b[0] = 0
    a[1] = 0
    a[2, 2] = a[2, 1]  # rank 2
    a[3, 2] = a[3, 1] * (1 + 1e-7)
    b[4, :, 2] = b[4, :, 1]
    a[5, 2] *= 1e-20
    for strength in (0.01, 1e9):
        after = penalised(b, a, strength=strength)
        assert after.isfinite().all()
        assert (after.norm(dim=(1, 2)) <= 2 * b.norm(dim=(1, 2))).all()
        assert ((after @ a).norm(dim=(1, 2)) <= (b @ a).norm(dim=(1, 2)) * (1 + 1e-6)).all()
        assert not after[0].any()
        assert torch.equal(after[1], b[1])
        assert not torch.equal(after[2:], b[2:])
    for lr, strength in ((0.0, 1.0), (1.0, 0.0)):
        assert torch.equal(penalised(b, a, lr=lr, strength=strength), b)
    assert penalised(b, a, emphasis=1e6).isfinite().all()
    assert penalised(b, a, lr=0.0, emphasis=1e6).isfinite().all()


def test_bad_values_stay_where_they_are():
    b, a = noise(4, 7, 3, dtype=torch.float32), noise(4, 3, 9, seed=1, dtype=torch.float32)
    clean = penalised(b, a, **STRONG)
    b[0, 2, 1], a[1, 0, 0] = torch.nan, torch.inf
    after = penalised(b, a, **STRONG)
    assert torch.equal(after[2:], clean[2:])
    assert torch.equal(after[1], b[1])
    others = [0, 1, 3, 4, 5, 6]
    assert torch.equal(after[0, others], b[0, others])


def test_only_the_upper_factor_of_a_pair_moves():
    names = ["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_u.lora_up.weight", "head.weight"]
    members = resolve(names, [(4, 12), (10, 4), (10, 4), (7, 5)])
    assert [build("rank_penalty").fit(member) is not None for member in members] == [False, True, False, False]
    lokr = resolve(["lora_unet_k.lokr_w1", "lora_unet_k.lokr_w2_a", "lora_unet_k.lokr_w2_b"], [(4, 4), (8, 4), (4, 40)])
    assert [build("rank_penalty").fit(member) is not None for member in lokr] == [False, True, False]
    frozen = resolve(["lora_unet_x.p_layer.weight", "lora_unet_x.q_layer.weight"], [(8, 4), (4, 12)])
    assert frozen[0].partner == 1  # T-LoRA: zero is not where it began, so it does not decay
    assert build("rank_penalty").fit(frozen[0]) is None
    results = []
    for strength in (0.0, 50.0):
        params = make_params(shapes={name: (4, 12) if "down" in name else (10, 4) for name in names[:3]})
        train(pair_optimizer(params, strength=strength), params, 1)
        results.append([param.detach() for param in params.values()])
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[0][2], results[1][2])


def pair_optimizer(params, lr=1e-2, **options):
    chain = [build("adam"), build("weight_decay"), build("rank_penalty", **options)]
    return HinaOptimizer(params.items(), chain, lr=lr, weight_decay=0.0, state="fp32")


@pytest.mark.slow
def test_it_lowers_the_effective_rank_in_training():
    """A target of rank 1 plus noise: the penalty leaves the signal and takes the noise."""
    tails = []
    for strength in (0.0, 0.5):
        params = make_params(shapes={"lora_unet_a.lora_down.weight": (8, 24), "lora_unet_a.lora_up.weight": (20, 8)})
        down, up = params.values()
        up.data.zero_()
        optimizer = pair_optimizer(params, strength=strength)
        target = noise(20, 1, dtype=torch.float32) @ noise(1, 24, seed=1, dtype=torch.float32)
        for step in range(150):
            optimizer.zero_grad()
            noisy = target + 0.3 * noise(20, 24, seed=10 + step, dtype=torch.float32)
            (up @ down - noisy).square().mean().backward()
            optimizer.step()
        sigma = torch.linalg.svdvals((up @ down).detach())
        tails.append((sigma[1:8].square().sum() / sigma[0].square()).item())
        assert sigma[0] > 0.8 * torch.linalg.svdvals(target)[0]
    assert tails[1] < 0.3 * tails[0]


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"strength": 1.0}, {"emphasis": 3.0}], ids=str)
def test_every_option_changes_the_update(options):
    grads = gradients(PAIR_SHAPES, PAIR_SHAPES, 3)
    finals = [
        run("rank_penalty", PAIR_SHAPES, grads, **chosen)[0]["lora_unet_a.lora_up.weight"] for chosen in ({}, options)
    ]
    assert not np.allclose(*finals, rtol=1e-7)


def pairs(per_shape):
    shapes = {}
    for i in range(per_shape):
        shapes |= {f"lora_unet_{i}.lora_down.weight": (4, 12), f"lora_unet_{i}.lora_up.weight": (10, 4)}
    return shapes


@pytest.mark.slow
@promises.dtypes
def test_resume_is_exact(dtype):
    for state in STATES:
        make = partial(optimizer, name="rank_penalty", state=state, decay=DECAY, strength=1.0)
        promises.resumes_exactly(make, make_params(dtype), steps=6)


@pytest.mark.slow
def test_bad_neighbours_zeros_and_cost(monkeypatch):
    make = partial(optimizer, name="rank_penalty", strength=1.0)
    victim = "lora_unet_0.lora_up"  # which no other matrix reads
    promises.spares_neighbours(make, {3: torch.nan}, pairs(3), victim, steps=8)
    for state in STATES:
        promises.bears_zeros(partial(make, state=state))
    promises.operations_go_with_shapes(make, lambda size: make_params(shapes=pairs(size)), sizes=(2, 4))
    promises.chunks_change_no_bit(monkeypatch, make, pairs(3))


def test_a_bad_lower_factor_reaches_only_its_own_pair():
    results = []
    for poison in (False, True):
        params = make_params(shapes=pairs(3))
        optimizer = pair_optimizer(params, strength=1.0)
        for step in range(4):
            set_grads(params, step)
            if poison and step == 1:
                next(iter(params.values())).grad[0, 0] = torch.nan
            optimizer.step()
        results.append([param.detach() for param in params.values()])
    assert all(param.isfinite().all() for param in results[1])
    assert not torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][2:], results[1][2:], strict=True))


@pytest.mark.parametrize("options", [{"strength": -0.1}, {"emphasis": 0.9}], ids=str)
def test_bounds(options):
    with pytest.raises(ValueError, match="is outside"):
        build("rank_penalty", **options)
