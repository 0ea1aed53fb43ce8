"""Cautious by context in the optimizer: against its oracle, at its limit Cautious itself, and what its state says."""

import json

import numpy as np
import pytest
import torch

from hina_kohya.core import chain
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from tests.conftest import make_params, set_grads, train
from tests.core.test_cost import Counter, small_matrices
from tests.core.test_edges import STATES
from tests.core.test_memory import lora_set
from tests.core.test_resume import copy_of, through_file
from tests.oracles.came import CAME
from tests.oracles.cautious import Cautious
from tests.oracles.contextual_cautious import ContextualCautious
from tests.techniques.test_against_oracles import DECAY, MATRICES, close, rate, start

STEPS = 80
SHAPES = MATRICES | {"one": (1,), "column.weight": (6, 1), "point.weight": (6, 4, 1, 1)}
OPTIONS = [{}, {"scales": (2,)}, {"window": 4, "edge_threshold": 0.2}, {"rate": 0.6, "floor": 0.5}]
states = pytest.mark.parametrize("state", STATES)


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
    assert {tuple(t.name for t in each) for each in both.chains()} == {("adam", "contextual_cautious")}


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("moment", ["adam", "came"])
@states
def test_k_and_k_is_2k(state, moment, dtype):
    params = make_params(dtype)
    optimizer = contextual(params, state, moment)
    train(optimizer, params, 4)
    saved, resumed = through_file(optimizer.state_dict()), copy_of(params)
    train(optimizer, params, 4, start=4)
    second = contextual(resumed, state, moment)
    second.load_state_dict(saved)
    train(second, resumed, 4, start=4)
    assert all(torch.equal(params[name], resumed[name]) for name in params)
    ours, theirs = optimizer.state_dict()["state"], second.state_dict()["state"]
    for index, entry in ours.items():
        assert "contextual_cautious.context" in entry
        for key, value in entry.items():
            other = theirs[index][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


@pytest.mark.parametrize("target", STATES)
@states
def test_another_codec_takes_over_the_values(state, target):
    params = make_params(shapes={"lora_unet_a.lora_up.weight": (40, 20)})
    optimizer = contextual(params, state)
    train(optimizer, params, 5)
    second = contextual(copy_of(params), target)
    second.load_state_dict(through_file(optimizer.state_dict()))
    mine, theirs = (
        o.plan().buckets[0].slabs["contextual_cautious", "context"].read(slice(None), torch.float32)
        for o in (optimizer, second)
    )
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
    found = {technique for each in second.chains() for technique in each if technique.name == "contextual_cautious"}
    assert [technique.scales for technique in found] == [(2, 4)]
    train(second, params, 1)
    assert json.dumps(second.get_optimization_info())


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
    healthy, poisoned = make_params(), make_params()
    victims = {name for name in healthy if name.startswith("lora_unet_a.")}
    for params, poison in ((healthy, False), (poisoned, True)):
        optimizer = contextual(params, state)
        for step in range(5):
            set_grads(params, step)
            if poison and step in (2, 3):
                for name in victims:
                    params[name].grad.flatten()[0] = torch.nan if step == 2 else torch.inf
            optimizer.step()
    assert all(torch.equal(healthy[name], poisoned[name]) for name in healthy.keys() - victims)
    for name in victims:
        assert poisoned[name].isnan().any()
        entry = optimizer.state[poisoned[name]]
        assert all(value.isfinite().all() for key, value in entry.items() if key.startswith("contextual_cautious."))
        assert entry["contextual_cautious.usual"].abs() > 0


@states
def test_odd_shapes_and_zero_gradients(state):
    params = make_params()
    params |= {"empty": torch.nn.Parameter(torch.zeros(0, 3)), "zero": torch.nn.Parameter(torch.zeros(5, 5))}
    optimizer = contextual(params, state)
    for step in range(6):
        set_grads(params, step)
        for param in params.values():
            if step in (0, 1, 4):
                param.grad.zero_()
        optimizer.step()
    assert all(param.isfinite().all() for param in params.values())


@states
def test_chunks_do_not_change_a_bit(state, monkeypatch):
    results = []
    for chunk in (1, 100, 1 << 20):
        monkeypatch.setattr("hina_kohya.core.bucket.CPU_CHUNK", chunk)
        params = make_params()
        train(contextual(params, state), params, 3)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_bytes_a_parameter_at_rank_16():
    params = make_params(shapes=lora_set(rank=16))
    set_grads(params, 0)
    found = []
    for name in ("cautious", "contextual_cautious"):
        optimizer = HinaOptimizer(params.items(), [build("adam"), build(name)], lr=1e-3, weight_decay=0.0, state="8bit")
        optimizer.step()
        found.append(optimizer.get_memory_efficiency_report()["bytes_per_parameter"])
    assert found[1] - found[0] <= 0.3


def test_operations_go_with_shapes_and_nothing_waits():
    counts = []
    for per_shape in (10, 20):
        params = small_matrices(per_shape)
        optimizer = contextual(params)
        for step in range(2):
            set_grads(params, step)
            with Counter() as counter:
                optimizer.step()
        assert counter.synchronisations == []
        counts.append(counter.operations)
    assert counts[0] == counts[1] <= 1400


def test_one_compiled_graph_for_all_matrices(monkeypatch):
    """With the second momentum in the chain, whose way out of the momentum is compiled along."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(chain.run, dynamic=True, backend=backend)
    monkeypatch.setattr("hina_kohya.core.optimizer._compiled", lambda: compiled)
    shapes = {f"m{i}.weight": (11 + i % 4, 15 + i % 4) for i in range(8)}
    params, plain = make_params(shapes=shapes), make_params(shapes=shapes)
    chosen = [build("adam"), build("dual_momentum"), build("contextual_cautious")]
    for each, compiles in ((params, True), (plain, False)):
        optimizer = HinaOptimizer(each.items(), chosen, lr=1e-3, weight_decay=0.0, compile=compiles)
        train(optimizer, each, 3)
    assert len(graphs) == 1
    for a, b in zip(params.values(), plain.values(), strict=True):
        torch.testing.assert_close(a, b)
