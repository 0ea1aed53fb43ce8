"""LoRA-Muon through the real optimizer: against its oracle, blind to how W is split, and right where pairs are odd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hina_kohya import HinaAdamW
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from tests.oracles import lora_muon
from tests.support.chains import chains_of
from tests.support.oracle_runs import gradients, rate, sparse, start
from tests.support.stepping import make_params, set_grads

STEPS, LR, DECAY = 30, 1e-2, 0.1
# (A, B) by module: tall, wide, convolution, rank 1, as much rank as sides; GLoRA starts a2, which is A, at zero.
PAIRS = {
    "lora_unet_a": ((4, 6), (11, 4)),
    "lora_unet_b": ((4, 12), (5, 4)),
    "lora_unet_c": ((2, 3, 3, 3), (5, 2, 1, 1)),
    "lora_unet_r": ((1, 6), (5, 1)),
    "lora_unet_w": ((4, 4), (9, 4)),
}
NAMES = {module: (f"{module}.lora_down.weight", f"{module}.lora_up.weight") for module in PAIRS}
SHAPES = {name: shape for module in PAIRS for name, shape in zip(NAMES[module], PAIRS[module], strict=True)}
GLORA = {"lora_unet_g.a2.weight": (4, 6), "lora_unet_g.a1.weight": (11, 4)}


def optimizer(params, *others, lr=LR, decay=DECAY, state="fp32", scale=None, **options):
    chain = [build("adam"), build("lora_muon", **options), build("weight_decay"), *map(build, others)]
    return HinaOptimizer(params.items(), chain, lr=lr, weight_decay=decay, state=state, lora_scale=scale)


def trained(shapes, grads, zero=(), **options):
    initial = {name: value * (name not in zero) for name, value in start(shapes).items()}
    params = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in initial.items()}
    opt = optimizer(params, **options)
    opt.param_groups[0]["initial_lr"] = LR
    for step, by_name in enumerate(grads):
        opt.param_groups[0]["lr"] = rate(step)
        for name, param in params.items():
            param.grad = torch.from_numpy(by_name[name])
        opt.step()
    return initial, {name: param.detach().numpy() for name, param in params.items()}


def flat(arrays, names, shapes):
    return [arrays[name].reshape(shapes[name][0], -1) for name in names]


def check(pairs, shapes, grads, zero, options, side="B"):
    scales = {k: options.get("scale", 1.0) for k in ("rank_free", "alpha_root") if options.get(k)}
    oracle_options = {k: v for k, v in options.items() if k not in ("rank_free", "alpha_root", "scale")} | scales
    initial, final = trained(shapes, grads, zero, **options)
    for names in pairs:
        a, b = flat(initial, names, shapes)
        oracle = lora_muon.LoRAMuon(**oracle_options, weight_decay=DECAY)
        for step, by_name in enumerate(grads):
            a, b = oracle.step(a, b, *flat(by_name, names, shapes), rate(step), LR, side)
        for mine, theirs in zip(flat(final, names, shapes), (a, b), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-7, atol=1e-8, err_msg=str(names))


OPTIONS = [
    {}, {"beta": 0.7}, {"beta2": 0.5}, {"eps": 0.1}, {"rms": 0.2}, {"kappa": 1.0}, {"rank_free": True},
    {"rank_free": True, "scale": 0.25}, {"alpha_root": True, "scale": 0.25}, {"alpha_root": True, "scale": 4.0},
    {"alpha_root": True}, {"alpha_root": True, "rank_free": True, "scale": 0.25}, {"scale": 0.25},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("zero_start", "holes"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_oracle(options, zero_start, holes):
    grads = gradients(SHAPES, SHAPES, STEPS)
    grads = sparse(grads) if holes else grads
    check(NAMES.values(), SHAPES, grads, [n for n in SHAPES if zero_start and "lora_up" in n], options)


def test_the_factor_that_starts_at_zero_is_known_by_its_name():
    grads = gradients(GLORA, GLORA, STEPS)
    check([tuple(GLORA)], GLORA, grads, ["lora_unet_g.a2.weight"], {}, side="A")


def product_path(change, seed, steps=20, **options):
    """W at each step of fitting a fixed target, from A changed to M A."""
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.normal(size=(9, 12)))
    a, b = torch.from_numpy(change @ rng.normal(size=(4, 12))), torch.from_numpy(rng.normal(size=(9, 4)))
    b = b @ torch.from_numpy(np.linalg.inv(change)) * 0.1
    params = {name: torch.nn.Parameter(value) for name, value in zip(NAMES["lora_unet_a"], (a, b), strict=True)}
    opt = optimizer(params, **options)
    path = []
    for _ in range(steps):
        opt.zero_grad()
        down, up = params.values()
        (up @ down - target).square().sum().backward()
        opt.step()
        path.append((up @ down).detach())
    return torch.stack(path)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), condition=st.sampled_from([1.0, 10.0, 100.0]))
def test_the_path_of_w_does_not_see_how_it_is_split(seed, condition):
    rng = np.random.default_rng(seed)
    u, _, v = np.linalg.svd(rng.normal(size=(4, 4)))
    change = u @ np.diag(np.geomspace(1, condition, 4)) @ v
    plain, changed = product_path(np.eye(4), seed), product_path(change, seed)
    # The ridge alone, a millionth of the mean eigenvalue, is not covariant.
    assert (plain - changed).norm(dim=(1, 2)).div(plain.norm(dim=(1, 2))).max() < 1e-6 * condition**2


def test_adam_does_see_it():
    change = np.diag([1.0, 3.0, 1.0, 1.0])
    chains = [product_path(m, 1, kappa=5.0) for m in (np.eye(4), change)]
    assert (chains[0] - chains[1]).norm() < 1e-3 * chains[0].norm()
    shapes = dict(zip(NAMES["lora_unet_a"], ((4, 12), (9, 4)), strict=True))
    moved = []
    for m in (torch.eye(4), torch.from_numpy(change).float()):
        pair = make_params(shapes=shapes)
        down, up = pair.values()
        down.data, up.data = m @ down.data, up.data @ m.inverse()
        opt = HinaAdamW(pair.items(), lr=0.05, use_lora_muon=False, state="fp32")
        for _ in range(10):
            opt.zero_grad()
            (up @ down - 1).square().sum().backward()
            opt.step()
        moved.append((up @ down).detach())
    assert (moved[0] - moved[1]).norm() > 1e-2 * moved[0].norm()


def test_weight_decay_shrinks_the_product():
    params = make_params(torch.float64, shapes=SHAPES)
    before = {m: product(params, m) for m in PAIRS}
    opt = optimizer(params, lr=0.1, decay=0.1)
    for param in params.values():
        param.grad = torch.zeros_like(param)
    opt.step()
    for module in PAIRS:
        torch.testing.assert_close(product(params, module), before[module] * (1 - 0.01 / 2) ** 2)


def product(params, module):
    down, up = (params[name].detach() for name in NAMES[module])
    return up.flatten(1) @ down.flatten(1)


@pytest.mark.parametrize("state", ["8bit", "bf16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_odd_pairs_stay_finite_and_of_the_steps_size(dtype, state):
    """B at zero, no gradient, a rate of zero, a factor of zeros, a factor that has collapsed to one direction."""
    params = make_params(dtype, shapes=SHAPES)
    with torch.no_grad():
        params["lora_unet_a.lora_up.weight"].zero_()
        params["lora_unet_b.lora_down.weight"].zero_()
        params["lora_unet_w.lora_down.weight"].copy_(params["lora_unet_w.lora_down.weight"][:1].clone())
    opt = optimizer(params, state=state)
    for step in range(6):
        opt.param_groups[0]["lr"] = 0.0 if step == 0 else LR
        set_grads(params, step)
        if step == 3:
            params["lora_unet_r.lora_up.weight"].grad.zero_()
        before = {module: product(params, module).float() for module in PAIRS}
        opt.step()
        for module, (down, up) in PAIRS.items():
            after = product(params, module).float()
            assert after.isfinite().all()
            if module == "lora_unet_w":  # B grows in directions that the collapsed A hardly has, and bf16 rounds it
                continue
            longest, rank = max(up[0], int(np.prod(down[1:]))), down[0]
            limit = 2 * 0.8 * LR * np.sqrt(longest * rank) + 0.05 * before[module].norm()
            assert (after - before[module]).norm() <= limit, module


def test_autocast_changes_no_bit():
    paths = []
    for enabled in (False, True):
        params = make_params(shapes=SHAPES)
        opt = optimizer(params)
        for step in range(4):
            set_grads(params, step)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                opt.step()
        paths.append(torch.cat([p.detach().flatten() for p in params.values()]))
    assert torch.equal(*paths)


def test_who_gets_it():
    shapes = {
        **SHAPES,
        "lora_unet_h.hada_w1_a": (6, 2), "lora_unet_h.hada_w1_b": (2, 5),
        "lora_unet_k.lokr_w1": (4, 4), "lora_unet_k.lokr_w2_a": (6, 2), "lora_unet_k.lokr_w2_b": (2, 5),
        "lora_unet_t.lora_down.weight": (2, 5, 1, 1), "lora_unet_t.lora_mid.weight": (2, 2, 3, 3),
        "lora_unet_t.lora_up.weight": (6, 2, 1, 1), "head.weight": (7, 5), "lora_unet_a.dora_scale": (11, 1),
        "lora_unet_n.lora_down.weight": (6, 4), "lora_unet_n.lora_up.weight": (9, 6),  # rank above a side
    }  # fmt: skip
    opt = HinaAdamW(make_params(shapes=shapes).items(), use_lora_muon=True)
    for name, chain in zip(shapes, chains_of(opt), strict=True):
        names = {technique.name for technique in chain}
        assert ("lora_muon" in names) == (name in SHAPES), name
        assert ("cautious" in names) == (name not in SHAPES), name
