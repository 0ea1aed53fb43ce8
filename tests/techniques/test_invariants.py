"""What the papers promise, on the techniques as they run: fp32, batched, in a chain."""

import dataclasses as dc

import pytest
import torch

from hina_kohya import HinaAdamW
from hina_kohya.core.chain import ordered, run
from hina_kohya.core.registry import build, techniques
from hina_kohya.core.technique import Stage
from hina_kohya.parameters.roles import resolve
from tests.support.chains import FLAGS, chains_of
from tests.support.signals import signal
from tests.support.stepping import make_params, set_grads, train


def apply(name, s, state=None, **options):
    return build(name, **options).apply(s, {} if state is None else state)


def per_matrix(x):
    return x.flatten(1)


def test_cautious_keeps_agreeing_entries_and_their_mean():
    s = signal()
    out = apply("cautious", s)
    agrees = s.update * s.grad > 0
    assert not out.update[~agrees].any()
    share = agrees.double().mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(out.update[agrees], (s.update / share)[agrees])
    assert (per_matrix(out.update * s.grad).sum(1) >= 0).all()
    torch.testing.assert_close(apply("cautious", dc.replace(s, grad=s.update)).update, s.update)
    assert not apply("cautious", dc.replace(s, grad=-s.update)).update.any()


def test_cautious_floor_bounds_the_rescaling():
    s = signal()
    grad = -s.update.clone()
    grad[:, 0, 0] *= -1  # one of 30 entries agrees
    out = apply("cautious", dc.replace(s, grad=grad), floor=0.5)
    torch.testing.assert_close(out.update[:, 0, 0], 2 * s.update[:, 0, 0])


def test_grams_has_the_gradients_sign_and_the_updates_size():
    s = signal()
    s.grad[0, 0, 0] = 0
    out = apply("grams", s)
    assert torch.equal(out.update.sign(), s.grad.sign())
    assert torch.equal(out.update.abs(), s.update.abs() * (s.grad != 0))
    assert torch.equal(apply("grams", out).update, out.update)


def test_orthograd_is_orthogonal_and_keeps_the_norm():
    s = signal(dtype=torch.float32)
    out = apply("orthograd", s)
    p, g, before = per_matrix(s.before), per_matrix(out.grad), per_matrix(s.grad)
    assert ((p * g).sum(1).abs() <= 1e-6 * p.norm(dim=1) * g.norm(dim=1)).all()
    torch.testing.assert_close(g.norm(dim=1), before.norm(dim=1))
    zero = torch.zeros_like(s.before)
    torch.testing.assert_close(apply("orthograd", dc.replace(s, before=zero)).grad, s.grad)
    assert not apply("orthograd", dc.replace(s, grad=3 * s.before)).grad.any()


def test_agr_shrinks_by_shares_that_sum_to_one():
    s = signal()
    out = apply("agr", s)
    share = 1 - out.grad / s.grad
    torch.testing.assert_close(per_matrix(share).sum(1), torch.ones(4, dtype=torch.float64))
    assert torch.equal(out.grad.sign(), s.grad.sign())
    assert apply("agr", dc.replace(s, grad=torch.zeros_like(s.grad))).grad.isfinite().all()


@pytest.mark.parametrize(("direction", "limit"), [(1, 1.0), (-1, 0.0)])
def test_tam_damps_by_the_angle(direction, limit):
    s, tam = signal(), build("tam", beta=0.5)
    state = {"torque": torch.zeros(4, 1, 1, dtype=torch.float64)}
    for _ in range(60):
        damped = tam.enter(s, direction * s.grad, s.grad, state)
    torch.testing.assert_close(damped, (limit + tam.eps) * s.grad, atol=1e-12, rtol=1e-9)
    scaled = tam.enter(s, s.grad, 1e6 * s.grad, {"torque": torch.zeros(4, 1, 1, dtype=torch.float64)})
    plain = tam.enter(s, s.grad, s.grad, {"torque": torch.zeros(4, 1, 1, dtype=torch.float64)})
    torch.testing.assert_close(scaled, 1e6 * plain)


def test_adopt_takes_no_step_at_first_and_ignores_its_own_gradient_in_the_denominator():
    params = make_params()
    before = {name: param.detach().clone() for name, param in params.items()}
    optimizer = HinaAdamW(params.items(), lr=1e-2, weight_decay=0.5, use_adopt_stability=True, state="fp32")
    set_grads(params, 0)
    optimizer.step()
    assert all(torch.equal(params[name], before[name]) for name in params)
    zeros = {"exp_avg": torch.zeros(4, 6, 5), "exp_avg_sq": torch.zeros(4, 6, 5)}
    s = signal(dtype=torch.float32, step=torch.full((4, 1, 1), 2.0, dtype=torch.float64))
    u = apply("adopt", s, dict(zeros)).update
    # v = 0 from a zero first gradient: only the clip at (2 - 1)^(1/4) = 1 bounds the step
    assert (u.abs() <= (1 - 0.9) * 1e-2 * 1.0001).all()


@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_spd_gives_back_that_share_of_the_growth(lam):
    s = signal()
    s = dc.replace(s, raw=s.before, param=s.before * 1.3)  # the gradient points along p: fires; the step grew
    out = apply("spd", s, lam=lam)
    norm = lambda x: per_matrix(x).norm(dim=1)
    torch.testing.assert_close(norm(out.param), norm(s.param) - lam * (norm(s.param) - norm(s.before)))
    quiet = dc.replace(s, raw=-s.before)
    assert torch.equal(apply("spd", quiet, lam=lam).param, s.param)
    far = apply("spd", dc.replace(s, param=s.before * 10), lam=50.0)
    torch.testing.assert_close(far.param, torch.zeros_like(far.param))  # clamped at the anchor, not through it


def test_cautious_weight_decay_and_its_complement_are_the_whole_decay():
    s = signal()
    whole = apply("weight_decay", s).param - s.param
    aligned = apply("cautious_weight_decay", s).param - s.param
    opposed = apply("cautious_weight_decay", dc.replace(s, direction=-s.direction)).param - s.param
    torch.testing.assert_close(aligned + opposed, whole)
    assert ((aligned != 0) == (s.direction * s.before > 0)).all()


def test_dynamic_weight_decay_reaches_its_floor():
    at = lambda step: (
        apply(
            "dynamic_weight_decay",
            signal(step=torch.full((4, 1, 1), float(step), dtype=torch.float64)),
            transition_steps=100,
            decay_factor=0.5,
            min_ratio=0.1,
        )
        .decay.unique()
        .item()
    )
    assert at(1) == at(100) == 0.1
    assert at(200) == pytest.approx(0.05)
    assert at(300) == pytest.approx(0.025)
    assert at(10_000) == pytest.approx(0.01)


def test_dynamic_weight_decay_in_fractions_of_the_run():
    steps, fraction = (
        build("dynamic_weight_decay", transition_steps=t, total_steps=n) for t, n in ((50, 0), (0.25, 200))
    )
    for step in (10, 60, 190):
        s = signal(step=torch.full((4, 1, 1), float(step), dtype=torch.float64))
        assert torch.equal(steps.apply(s, {}).decay, fraction.apply(s, {}).decay)
    with pytest.raises(ValueError, match="add dynamic_weight_decay.total_steps"):
        build("dynamic_weight_decay", transition_steps=0.25)


def product(params):
    w1, w2 = params["lora_unet_a.lokr_w1"].detach(), params["lora_unet_a.lokr_w2"].detach()
    return torch.kron(w1, w2)


def test_kronecker_rule_does_not_see_how_the_size_is_shared():
    shapes = {"lora_unet_a.lokr_w1": (4, 4), "lora_unet_a.lokr_w2": (6, 5)}
    results = []
    for scale in (1.0, 7.0):
        params = make_params(torch.float64, shapes=shapes)
        with torch.no_grad():
            params["lora_unet_a.lokr_w1"].mul_(scale)
            params["lora_unet_a.lokr_w2"].div_(scale)
        optimizer = HinaAdamW(
            params.items(), lr=1e-2, eps=1e-30, weight_decay=0.0, state="fp32", use_kronecker_rms=True,
            **{"kronecker_rms.floor": 1e-9},
        )  # fmt: skip
        for step in range(20):
            set_grads(params, step)
            for name, factor in zip(shapes, (1 / scale, scale), strict=True):
                params[name].grad *= factor  # the chain rule through (s w1, w2 / s)
            optimizer.step()
        results.append(product(params))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_lora_rite_does_not_see_the_basis():
    shapes = {"lora_unet_a.lora_down.weight": (4, 12), "lora_unet_a.lora_up.weight": (10, 4)}
    target = torch.randn(10, 12, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    change = torch.randn(4, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64) + 3 * torch.eye(4)
    results = []
    for basis in (torch.eye(4, dtype=torch.float64), change):
        params = make_params(torch.float64, shapes=shapes)
        down, up = params.values()
        with torch.no_grad():
            down.copy_(basis @ down)
            up.copy_(up @ basis.inverse())
        optimizer = HinaAdamW(
            params.items(), lr=1e-2, eps=1e-12, weight_decay=0.0, state="fp32", use_lora_rite=True, use_cautious=False
        )
        for _ in range(20):
            optimizer.zero_grad()
            (up @ down - target).square().sum().backward()
            optimizer.step()
        results.append((up @ down).detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-8)


def test_allora_factor_is_eta_where_b_is_zero():
    s = signal(before=torch.zeros(4, 6, 5, dtype=torch.float64), others=torch.eye(5).expand(4, 1, 5, 5).double())
    torch.testing.assert_close(apply("allora_rows", s, eta=2.0).update, 2 * s.update)


@pytest.mark.parametrize("name", [name for name, t in techniques().items() if t.stage is not Stage.TORQUE])
def test_inputs_are_never_written_to(name):
    """Purity, and that a matrix's result does not depend on its neighbours."""
    technique = build(name, **({"side": "B"} if name in ("lora_muon", "lora_rite") else {}))
    partners = {
        "allora_rows": (1, 5, 5),
        "kronecker_rms": (1, 1, 1),
        "lora_muon": (1, 5, 5),
        "lora_rite": (1, 9, 5),
        "rank_penalty": (1, 5, 5),
    }
    generator = torch.Generator().manual_seed(9)
    s = signal(
        dtype=torch.float32,
        peak=torch.ones(4, 1, 1, dtype=torch.float64),
        product=(torch.ones(4, 1, 1, dtype=torch.float64),) * 5,
        others=torch.randn(4, *partners[name], generator=generator)
        if technique.couples
        else torch.ones(4, 1, 1, dtype=torch.float64),
    )
    state = {
        slot: torch.rand(4, *technique.slot_shape(slot, 6, 5, (5, 9)), generator=generator) for slot in technique.slots
    }
    watched = [value for value in (*vars(s).values(), *state.values()) if isinstance(value, torch.Tensor)]
    copies = [value.clone() for value in watched]
    out = technique.apply(s, dict(state))
    assert all(torch.equal(a, b) for a, b in zip(watched, copies, strict=True))
    alone = dc.replace(s, **{k: v[1:2] for k, v in vars(s).items() if isinstance(v, torch.Tensor)})
    alone = alone.but(product=tuple(x[1:2] for x in s.product))
    single = technique.apply(alone, {slot: value[1:2] for slot, value in state.items()})
    for field in ("param", "grad", "update", "decay"):
        torch.testing.assert_close(getattr(out, field)[1:2], getattr(single, field), rtol=1e-5, atol=1e-7)


def test_a_chain_is_checked():
    adam, decay = build("adam"), build("weight_decay")
    assert [t.name for t in ordered([decay, adam])] == ["adam", "weight_decay"]
    with pytest.raises(ValueError, match=r"needs one MOMENT technique, not \[\]"):
        ordered([decay])
    with pytest.raises(ValueError, match=r"not \['adopt', 'adam'\]"):
        ordered([build("adopt"), adam])
    with pytest.raises(ValueError, match="given twice: adam"):
        ordered([adam, adam])
    with pytest.raises(ValueError, match="at most one DECAY"):
        ordered([adam, decay, build("cautious_weight_decay")])


def test_run_does_not_touch_state_it_was_given():
    chain = ordered([build("adam"), build("tam")])
    states = {
        "adam": {"exp_avg": torch.zeros(4, 6, 5), "exp_avg_sq": torch.zeros(4, 6, 5)},
        "tam": {"torque": torch.zeros(4, 1, 1)},
    }
    _, fresh = run(chain, signal(dtype=torch.float32), states)
    assert not any(value.any() for slots in states.values() for value in slots.values())
    assert all(value.any() for name in ("adam",) for value in fresh[name].values())


@pytest.mark.parametrize("options", FLAGS, ids=str)
def test_every_flag_changes_the_update(options):
    """And not only because another flag of the same line does."""
    shapes = make_shapes()
    base = {key: value for key, value in options.items() if key != list(options)[-1]}
    results = []
    for chosen in (base, options):
        params = make_params(shapes=shapes)
        train(HinaAdamW(params.items(), lr=1e-2, **chosen), params, 6)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    assert not torch.equal(*results)


def make_shapes():
    return {name: tuple(param.shape) for name, param in make_params().items()}


def test_lora_plus_acts_once_on_what_starts_at_zero():
    names = ["lora_unet_a.lora_down.weight", "lora_unet_a.lora_up.weight", "lora_unet_k.lokr_w2", "lora_unet_k.lokr_w1"]
    shapes = dict(zip(names, [(4, 12), (10, 4), (5, 5), (4, 4)], strict=True))
    roles = [member.role.zero_init for member in resolve(names, list(shapes.values()))]
    assert roles == [False, True, True, False]
    params = make_params(shapes=shapes)
    optimizer = HinaAdamW(params.items(), lr=1e-3, use_alora=True, alora_ratio=4.0)
    assert [any(t.name == "lora_plus" for t in chain) for chain in chains_of(optimizer)] == roles
    split = HinaAdamW(
        [
            {"params": [(n, params[n]) for n in names[::3]]},
            {"params": [(n, params[n]) for n in names[1:3]], "lr": 1e-2},
        ],
        lr=1e-3,
        use_alora=True,
    )
    assert not any(t.name == "lora_plus" for chain in chains_of(split) for t in chain)
