"""Cautious by context in the optimizer: against its oracle, at its limit Cautious itself, and what its state says."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.optim import report
from tests.oracles.came import CAME
from tests.oracles.cautious import Cautious
from tests.oracles.contextual_cautious import ContextualCautious
from tests.support import promises
from tests.support.chains import STATES, chains_of, states
from tests.support.checkpoints import copy_of, through_file
from tests.support.oracle_runs import DECAY, MATRICES, close, rate, start
from tests.support.stepping import make_params, train

STEPS = 80
SHAPES = MATRICES | {"one": (1,), "column.weight": (6, 1), "point.weight": (6, 4, 1, 1)}
OPTIONS = [{}, {"scales": (2,)}, {"window": 4, "edge_threshold": 0.2}, {"rate": 0.6, "floor": 0.5}]


def contextual(params, state="fp32", moment="adam", lr=1e-3, **options):
    chosen = [build(moment), build("weight_decay"), build("contextual_cautious", **options)]
    return HinaOptimizer(params.items(), chosen, lr=lr, weight_decay=DECAY, state=state, decay_roles="all")


def flipping(shape, seed, steps=STEPS):
    """Noise about a mean that turns around every so often."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(shape)
    for step in range(steps):
        g = mean * np.sign(np.sin(0.25 * step + 0.1)) + 0.7 * rng.standard_normal(shape)
        yield np.zeros(shape) if step == 0 else g


def run(optimizer, params, grads):
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate(step)
        for name, param in params.items():
            param.grad = torch.from_numpy(grads[name][step]).to(param.dtype)
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["adam", "came"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_oracle(options, moment):
    initial = start(SHAPES)
    params = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in initial.items()}
    grads = {name: list(flipping(shape, seed)) for seed, (name, shape) in enumerate(SHAPES.items())}
    run(contextual(params, moment=moment, **options), params, grads)
    edges = 0
    for name, p in initial.items():
        oracle = ContextualCautious(**options, moment=CAME() if moment == "came" else None, weight_decay=DECAY)
        for step, g in enumerate(grads[name]):
            p = oracle.step(p, g, rate(step))
        close(params[name].detach().numpy(), p)
        edges += oracle.edges
    assert edges > len(SHAPES)


@pytest.mark.slow
def test_without_trust_it_is_cautious():
    """To the bit; and so C-AdamW, as timm has it (tests/oracles/test_official.py)."""
    results = []
    for name, options in (("cautious", {}), ("contextual_cautious", {"rate": 0.0})):
        params = make_params()
        chosen = [build("adam"), build("weight_decay"), build(name, **options)]
        train(HinaOptimizer(params.items(), chosen, lr=1e-2, weight_decay=DECAY, state="8bit"), params, 20)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    assert torch.equal(*results)
    oracle, other, p = ContextualCautious(rate=0.0), Cautious(), np.ones((3, 4))
    q = p
    for g in flipping((3, 4), 0):
        p, q = oracle.step(p, g, 1e-2), other.step(q, g, 1e-2)
    assert np.array_equal(p, q)


def test_the_first_step_is_cautious_and_cautious_yields():
    p, q = make_params(), make_params()
    mine, theirs = contextual(p), HinaOptimizer(
        q.items(), [build("adam"), build("weight_decay"), build("cautious")], lr=1e-3, weight_decay=DECAY,
        state="fp32", decay_roles="all",
    )  # fmt: skip
    train(mine, p, 1)
    train(theirs, q, 1)
    assert all(torch.equal(p[name], q[name]) for name in p)
    both = HinaOptimizer(
        p.items(), [build("adam"), build("cautious"), build("contextual_cautious")], lr=1e-3, weight_decay=0.0
    )
    assert {tuple(t.name for t in each) for each in chains_of(both)} == {("adam", "contextual_cautious")}


CHANGES = [{"scales": (1, 5)}, {"window": 2}, {"edge_threshold": 0.3}, {"rate": 0.5}, {"floor": 1.0}]


@pytest.mark.parametrize("options", CHANGES, ids=str)
def test_every_option_changes_the_update(options):
    results = []
    for chosen in ({}, options):
        params = make_params(shapes={"head.weight": (7, 5)})
        run(contextual(params, **chosen), params, {"head.weight": list(flipping((7, 5), 0))})
        results.append(params["head.weight"].detach())
    assert not torch.equal(*results)


def test_trust_grows_while_gradients_agree_and_is_gone_when_they_turn():
    params = {"head.weight": torch.nn.Parameter(torch.zeros(6, 5))}
    optimizer, generator = contextual(params, rate=0.3, window=5), torch.Generator().manual_seed(0)
    mean, disagrees = torch.randn(6, 5, generator=generator), []
    for step in range(40):
        params["head.weight"].grad = mean.clone() if step < 39 else -mean
        before = params["head.weight"].detach().clone()
        optimizer.step()
        disagrees.append((params["head.weight"].detach() - before).abs().max().item())
    entry = optimizer.state[params["head.weight"]]
    assert 0.69 < entry["contextual_cautious.trust"].item() < 1
    assert entry["contextual_cautious.usual"].item() > 0.5
    assert disagrees[38] > 1e-4  # all agree: an Adam step
    assert disagrees[39] < 1e-5  # the momentum still points the old way: nothing but decay, and no trust helps


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_the_gradients_size_does_not_matter(scale):
    states = []
    for factor in (1.0, scale):
        params = make_params(shapes={"head.weight": (7, 5)})
        optimizer = contextual(params)
        train(optimizer, params, 10, scale=factor)
        states.append(optimizer.state[params["head.weight"]]["contextual_cautious.trust"])
    assert torch.equal(*states)
    assert states[0] > 0


def test_rows_and_columns_may_be_permuted():
    generator = torch.Generator().manual_seed(3)
    i, j = torch.randperm(7, generator=generator), torch.randperm(5, generator=generator)
    results = []
    for permute in (lambda x: x, lambda x: x[i.numpy()][:, j.numpy()]):
        begin = make_params(torch.float64)["head.weight"].detach()
        params = {"head.weight": torch.nn.Parameter(permute(begin).clone())}
        run(contextual(params), params, {"head.weight": [permute(g).copy() for g in flipping((7, 5), 1)]})
        results.append(params["head.weight"].detach())
    torch.testing.assert_close(results[0][i][:, j], results[1], rtol=1e-12, atol=1e-13)


@promises.dtypes
@pytest.mark.parametrize("moment", ["adam", "came"])
@states
def test_k_and_k_is_2k(state, moment, dtype):
    make = partial(contextual, state=state, moment=moment)
    optimizer, *_ = promises.resumes_exactly(make, make_params(dtype))
    assert all("contextual_cautious.context" in entry for entry in optimizer.state_dict()["state"].values())


@pytest.mark.parametrize("target", STATES)
@states
def test_another_codec_takes_over_the_values(state, target):
    mine, theirs = promises.read_by_another_codec(contextual, state, target, "contextual_cautious", "context")
    assert mine.shape == (1, 4, 60)
    assert (mine - theirs).abs().max() <= 0.02 * mine.abs().max()


def test_settings_survive_json_and_hash():
    params = make_params()
    optimizer = contextual(params, scales=[2, 4])  # as a command line or TOML has it
    train(optimizer, params, 1)
    saved = through_file(optimizer.state_dict())
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
    assert saved["param_groups"][0]["techniques"]["contextual_cautious"]["scales"] == [2, 4]
    second = contextual(copy_of(params), scales=(2, 4))
    second.load_state_dict(saved)
    found = {technique for each in chains_of(second) for technique in each if technique.name == "contextual_cautious"}
    assert [technique.scales for technique in found] == [(2, 4)]
    train(second, params, 1)
    assert json.dumps(report.information(second))


def test_other_scales_than_the_checkpoints_are_refused():
    params = make_params()
    optimizer = contextual(params)
    train(optimizer, params, 1)
    chosen = [build("adam"), build("contextual_cautious", scales=(1, 10))]
    second = HinaOptimizer(
        copy_of(params).items(), chosen, lr=1e-3, weight_decay=0.0, override_hyperparameters=True, state="fp32"
    )
    with pytest.raises(ValueError, match=r"has 32 values, the checkpoint's contextual_cautious.context 64;.* option"):
        second.load_state_dict(through_file(optimizer.state_dict()))


@pytest.mark.parametrize("scales", [(), (0, 5), (1.5, 3), (5, 1), (2, 2), (True, 2), 5, "5", None], ids=str)
def test_bad_scales_are_refused(scales):
    with pytest.raises(
        ValueError, match=r"contextual_cautious.scales = .* whole numbers of steps, one or more, rising"
    ):
        build("contextual_cautious", scales=scales)


@states
def test_nan_reaches_no_other_matrix_and_no_context(state):
    make = partial(contextual, state=state)
    optimizer, victims = promises.spares_neighbours(make, {2: torch.nan, 3: torch.inf})
    for param in victims.values():
        entry = optimizer.state[param]
        assert all(value.isfinite().all() for key, value in entry.items() if key.startswith("contextual_cautious."))
        assert entry["contextual_cautious.usual"].abs() > 0


@states
def test_odd_shapes_and_zero_gradients(state):
    promises.bears_zeros(partial(contextual, state=state))


@states
def test_chunks_do_not_change_a_bit(state, monkeypatch):
    promises.chunks_change_no_bit(monkeypatch, partial(contextual, state=state))


def test_bytes_a_parameter_at_rank_16():
    def make(params, name):
        return HinaOptimizer(params.items(), [build("adam"), build(name)], lr=1e-3, weight_decay=0.0, state="8bit")

    plain, mine = (
        promises.bytes_a_parameter_at_rank_16(partial(make, name=name)) for name in ("cautious", "contextual_cautious")
    )
    assert mine - plain <= 0.3


def test_operations_go_with_shapes_and_nothing_waits():
    assert promises.operations_go_with_shapes(contextual) <= 1400


@pytest.mark.slow
def test_one_compiled_graph_for_all_matrices(monkeypatch):
    """With the second momentum in the chain, whose way out of the momentum is compiled along."""
    chosen = [build("adam"), build("dual_momentum"), build("contextual_cautious")]
    promises.one_compiled_graph_for_all_matrices(monkeypatch, chosen)
