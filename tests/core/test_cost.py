"""The price of a step, counted: operations go with shapes, not with tensors, and nothing waits for the device."""

import pytest
import torch

from hina_kohya import HinaAdamW
from tests.support.chains import ALL
from tests.support.counting import Counter, small_matrices
from tests.support.stepping import make_params, set_grads


def count(params, steps=3, **options):
    optimizer = HinaAdamW(params.items(), lr=1e-3, **options)
    for step in range(steps):
        set_grads(params, step)
        with Counter() as counter:
            optimizer.step()
    return counter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 1480),
        ({"state": "fp32"}, 860),
        ({"use_muon": True}, 1470),
        (ALL, 1640),
        ({**ALL, "state": "fp32"}, 1000),
        ({**ALL, "use_muon": True}, 2020),
    ],
    ids=["default", "default fp32", "normuon", "all", "all fp32", "all with muon"],
)
def test_1400_matrices_in_9_shapes_take_few_launches(options, most):
    counter = count(small_matrices(117), **options)
    assert counter.operations <= most
    assert counter.synchronisations == []


@pytest.mark.slow
def test_twice_the_matrices_add_no_operation():
    for state in ("8bit", "bf16", "fp32"):
        few, many = (count(small_matrices(n), state=state, **ALL).operations for n in (20, 40))
        assert few == many


def test_no_synchronisation_with_missing_gradients_or_bf16():
    params = make_params(torch.bfloat16)
    optimizer = HinaAdamW(params.items(), lr=1e-3, state="bf16", use_adopt_stability=True, use_spd=True, use_grams=True)
    for step in range(3):
        set_grads(params, step)
        for index, param in enumerate(params.values()):
            if (index + step) % 3 == 0:
                param.grad = None
        with Counter() as counter:
            optimizer.step()
    assert counter.synchronisations == []
    assert counter.operations > 100


def test_chunks_do_not_change_a_bit(monkeypatch):
    """Reductions are per matrix, so where a bucket is cut cannot matter."""
    results = []
    for chunk in (1, 100, 1 << 20):
        monkeypatch.setattr("hina_kohya.core.bucket.CPU_CHUNK", chunk)
        params = make_params()
        optimizer = HinaAdamW(params.items(), lr=1e-3, **ALL)
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
        results.append([param.detach().clone() for param in params.values()])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.slow
def test_compile_makes_one_graph_for_all_shapes(monkeypatch):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    from hina_kohya.core import optimizer as module
    from hina_kohya.core.chain import run

    torch._dynamo.reset()
    compiled = torch.compile(run, dynamic=True, backend=backend)
    monkeypatch.setattr(module, "_compiled", lambda: compiled)
    shapes = {f"m{i}.weight": (3 + i % 4, 5 + i) for i in range(6)} | {
        f"n{i}.weight": (3 + i % 4, 5 + i) for i in range(6)
    }
    params, plain = make_params(shapes=shapes), make_params(shapes=shapes)
    fast, eager = HinaAdamW(params.items(), compile=True), HinaAdamW(plain.items())
    for step in range(4):
        for group in (*fast.param_groups, *eager.param_groups):
            group["lr"] = 1e-3 / (1 + step)
        for each, optimizer in ((params, fast), (plain, eager)):
            set_grads(each, step)
            optimizer.step()
    assert len(graphs) == 1
    for a, b in zip(params.values(), plain.values(), strict=True):
        torch.testing.assert_close(a, b)
