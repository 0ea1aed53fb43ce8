"""The second momentum in the optimizer: AdEMAMix with Adam, and the same mix under every other momentum."""

from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from tests.oracles import dual_momentum as oracles
from tests.oracles.tam import Torque
from tests.support import promises
from tests.support.chains import chains_of, states
from tests.support.oracle_runs import DECAY, MATRICES, STEPS, close, gradients, rate, start
from tests.support.signals import signal
from tests.support.stepping import make_params, set_grads, train

MOMENTS = ["adam", "adopt", "adatam", "came", "muon"]
OTHERS = {
    "adopt": oracles.AdoptMix,
    "adatam": oracles.AdaTamMix,
    "came": oracles.CameMix,
    "muon": oracles.MuonMix,
}
moments = pytest.mark.parametrize("moment", MOMENTS)


def dual(params, state="fp32", moment="adam", others=(), lr=1e-3, decay=DECAY, **options):
    wanted = [*dict.fromkeys((moment, "adam" if moment == "muon" else moment)), "weight_decay", *others]
    chosen = [*map(build, wanted), build("dual_momentum", **options)]
    return HinaOptimizer(params.items(), chosen, lr=lr, weight_decay=decay, state=state, decay_roles="all")


def run(shapes, grads, **arguments):
    params = {name: torch.nn.Parameter(torch.from_numpy(p)) for name, p in start(shapes).items()}
    optimizer = dual(params, **arguments)
    for step, by_name in enumerate(grads):
        optimizer.param_groups[0]["lr"] = rate(step)
        for name, param in params.items():
            param.grad = torch.from_numpy(by_name[name])
        optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def against(make, shapes=MATRICES, **arguments):
    grads = gradients(shapes, shapes, STEPS)
    final = run(shapes, grads, **arguments)
    for name, p in start(shapes).items():
        oracle = make()
        for step, by_name in enumerate(grads):
            p = oracle.step(p, by_name[name], rate(step))
        close(final[name], p)


@pytest.mark.parametrize(("long_beta", "alpha"), [(0.99, 1.0), (0.8, 5.0), (0.9999, 0.3), (0.0, 0.0)])
def test_with_adam_it_is_ademamix(long_beta, alpha):
    betas = (0.9, 0.999, long_beta)
    against(lambda: oracles.AdEMAMix(betas, alpha, weight_decay=DECAY), long_beta=long_beta, alpha=alpha)


@pytest.mark.parametrize("others", [["tam"], ["cautious"]])
def test_with_torque_both_are_damped_and_masks_see_the_mix(others):
    class Masked(oracles.AdEMAMix):
        def direction(self, g):
            u = super().direction(g)
            keep = u * g > 0
            return u * keep / max(keep.mean(), 1e-3)

    if others == ["tam"]:
        against(lambda: oracles.AdEMAMix(weight_decay=DECAY, damping=Torque()), others=others)
    else:
        against(lambda: Masked(weight_decay=DECAY), others=others)


@pytest.mark.parametrize("moment", OTHERS)
def test_under_other_momenta(moment):
    shapes = {name: shape for name, shape in MATRICES.items() if moment != "muon" or len(shape) > 1}
    against(lambda: OTHERS[moment](weight_decay=DECAY), shapes, moment=moment)


def test_without_nesterov():
    shapes = {"head.weight": (7, 5)}
    grads = gradients(shapes, shapes, STEPS)
    params = {name: torch.nn.Parameter(torch.from_numpy(p)) for name, p in start(shapes).items()}
    chosen = [build("muon", nesterov=False), build("dual_momentum", alpha=2.0)]
    optimizer = HinaOptimizer(params.items(), chosen, lr=1e-2, weight_decay=0.0, state="fp32")
    oracle, p = oracles.MuonMix(nesterov=False), start(shapes)["head.weight"]
    oracle.alpha = 2.0
    for by_name in grads:
        params["head.weight"].grad = torch.from_numpy(by_name["head.weight"])
        optimizer.step()
        p = oracle.step(p, by_name["head.weight"], 1e-2)
    np.testing.assert_allclose(params["head.weight"].detach().numpy(), p, rtol=1e-9, atol=1e-10)


def test_the_order_of_the_chain_does_not_matter():
    results = []
    for names in (["tam", "dual_momentum"], ["dual_momentum", "tam"]):
        params = make_params()
        chosen = [build("adam"), *map(build, names)]
        train(HinaOptimizer(params.items(), chosen, lr=1e-2, weight_decay=0.0), params, 5)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    assert torch.equal(*results)


@moments
@pytest.mark.parametrize("options", [None, {"alpha": 3.0}, {"long_beta": 0.5}], ids=str)
def test_it_and_each_option_change_the_update(moment, options):
    make = partial(dual, moment=moment)
    promises.updates_differ(make, partial(make, **({"alpha": 0.0} if options is None else options)), steps=5)


@moments
def test_without_weight_it_changes_no_bit(moment):
    results = []
    for off in (False, True):
        params = make_params()
        optimizer = dual(params, "8bit", moment, alpha=0.0)
        if off:
            for group in optimizer.param_groups:
                del group["techniques"]["dual_momentum"]
        train(optimizer, params, 6)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    assert torch.equal(*results)


def test_lora_rite_has_none():
    params = make_params()
    optimizer = dual(params, others=["lora_rite"])
    found = {name: {t.name for t in chain} for name, chain in zip(params, chains_of(optimizer), strict=True)}
    assert "dual_momentum" not in found["lora_unet_a.lora_up.weight"]
    assert "dual_momentum" in found["head.weight"]
    train(optimizer, params, 2)


@moments
@promises.dtypes
@states
def test_k_and_k_is_2k(state, dtype, moment):
    optimizer, *_ = promises.resumes_exactly(partial(dual, state=state, moment=moment), make_params(dtype))
    for entry in optimizer.state_dict()["state"].values():
        assert any(key.startswith("dual_momentum.long_avg") for key in entry)


@moments
@states
def test_zero_gradients_odd_shapes_and_nan(state, moment):
    """Two runs, one with a NaN in one matrix: the others do not change by a bit."""
    results = []
    for poison in (False, True):
        params = make_params()
        params |= {"empty": torch.nn.Parameter(torch.zeros(0, 3)), "zero": torch.nn.Parameter(torch.zeros(5, 5))}
        optimizer = dual(params, state, moment)
        for step in range(5):
            set_grads(params, step)
            if step in (0, 3):
                for param in params.values():
                    param.grad.zero_()
            if poison and step == 2:
                params["lora_unet_a.lora_up.weight"].grad[0, 0] = torch.nan
            optimizer.step()
        results.append({name: p.detach() for name, p in params.items() if name != "lora_unet_a.lora_up.weight"})
    assert all(p.isfinite().all() for p in results[0].values())
    assert all(torch.equal(p, results[1][name]) for name, p in results[0].items())


@moments
def test_rows_and_columns_may_be_permuted(moment):
    promises.rows_and_columns_may_be_permuted(partial(dual, moment=moment), rtol=1e-9, atol=1e-10)


def test_one_slot_and_nothing_waits():
    assert promises.bytes_a_parameter_at_rank_16(partial(dual, state="8bit")) <= 3.15
    promises.operations_go_with_shapes(dual)


@pytest.mark.slow
@pytest.mark.parametrize(("state", "beta"), [("8bit", 0.99), ("bf16", 0.99), ("bf16", 0.999), ("bf16", 0.9999)])
def test_a_compressed_long_average_follows_noise_with_a_small_mean(state, beta):
    """Its changes are far smaller than its values' codes; the noise on them makes the rounding harmless."""
    generator, found = torch.Generator().manual_seed(0), {}
    grads = 0.3 + torch.randn(600, 1, 8, 64, generator=generator)
    for kept in ("fp32", state):
        params = {"head.weight": torch.nn.Parameter(torch.zeros(8, 64))}
        optimizer = dual(params, kept, long_beta=beta)
        for grad in grads:
            params["head.weight"].grad = grad[0].clone()
            optimizer.step()
        slab = optimizer.plan().buckets[0].slabs["dual_momentum", "long_avg"]
        found[kept] = slab.read(slice(None), torch.float32)
    error = (found[state] - found["fp32"]).norm() / found["fp32"].norm()
    assert error < (0.15 if state == "8bit" else 0.08), error


def test_nothing_that_is_passed_in_is_written_to():
    s, technique = signal(dtype=torch.float32), build("dual_momentum", alpha=2.0, long_beta=0.5)
    state = {"long_avg": torch.ones_like(s.grad)}
    weight = torch.full((4, 1, 1), 0.25, dtype=torch.float64)
    kept = [x.clone() for x in (s.update, s.grad, state["long_avg"])]
    given = state["long_avg"]
    mixed = technique.leave(s, s.update, s.grad, weight, state)
    assert all(torch.equal(a, b) for a, b in zip((s.update, s.grad, given), kept, strict=True))
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed / 0.25, s.update / 0.25 + 2 * (0.5 + 0.5 * s.grad))
