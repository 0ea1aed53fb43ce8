"""What every technique promises; `make(params)` is an optimizer with the technique in its chain."""

import pytest
import torch

from hina_kohya.core import chain
from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.optim import report
from tests.support import table
from tests.support.checkpoints import copy_of, through_file
from tests.support.counting import Counter, small_matrices
from tests.support.memory import lora_set
from tests.support.stepping import make_params, set_grads, train

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


def resumes_exactly(make, params, steps=4):
    """k steps, a file, and k steps are 2k steps to the last bit, state included."""
    optimizer = make(params)
    train(optimizer, params, steps)
    saved, resumed = through_file(optimizer.state_dict()), copy_of(params)
    train(optimizer, params, steps, start=steps)
    second = make(resumed)
    second.load_state_dict(saved)
    train(second, resumed, steps, start=steps)
    assert all(torch.equal(params[name], resumed[name]) for name in params)
    ours, theirs = optimizer.state_dict()["state"], second.state_dict()["state"]
    assert len(ours) == len(params)
    for index, entry in ours.items():
        for key, value in entry.items():
            other = theirs[index][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key
    return optimizer, second, resumed


def read_by_another_codec(make, state, target, technique, slot):
    """What a slot holds under the codec `state`, and what `target` makes of its checkpoint."""
    params = make_params(shapes={"lora_unet_a.lora_up.weight": (40, 20)})
    optimizer = make(params, state=state)
    train(optimizer, params, 5)
    second = make(copy_of(params), state=target)
    second.load_state_dict(through_file(optimizer.state_dict()))
    return [o.plan().buckets[0].slabs[technique, slot].read(slice(None), torch.float32) for o in (optimizer, second)]


def operations(make, params):
    """Launches of the second step, for the first one builds the plan; none waits for the device."""
    optimizer = make(params)
    for step in range(2):
        set_grads(params, step)
        with Counter() as counter:
            optimizer.step()
    assert counter.synchronisations == []
    return counter.operations


def operations_go_with_shapes(make, matrices=small_matrices, sizes=(10, 20)):
    """With more matrices of the same shapes no step takes more operations; returns how many it takes."""
    few, many = (operations(make, matrices(size)) for size in sizes)
    assert few == many
    return few


def one_compiled_graph_for_all_matrices(monkeypatch, techniques):
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(chain.run, dynamic=True, backend=backend)
    monkeypatch.setattr("hina_kohya.core.optimizer._compiled", lambda: compiled)
    # two of each shape, so that no size is 1; and no size that another has by chance, which dynamo takes for a rule
    shapes = {f"m{i}.weight": (11 + i % 4, 15 + i % 4) for i in range(8)}
    params, plain = make_params(shapes=shapes), make_params(shapes=shapes)
    for each, compiles in ((params, True), (plain, False)):
        optimizer = HinaOptimizer(each.items(), techniques, lr=1e-3, weight_decay=0.0, compile=compiles)
        train(optimizer, each, 3)
    assert len(graphs) == 1
    for a, b in zip(params.values(), plain.values(), strict=True):
        torch.testing.assert_close(a, b)


def bytes_a_parameter_at_rank_16(make):
    params = make_params(shapes=lora_set(rank=16))
    set_grads(params, 0)
    optimizer = make(params)
    optimizer.step()
    return report.memory(optimizer)["bytes_per_parameter"]


def chunks_change_no_bit(monkeypatch, make, shapes=None, steps=3):
    """Where a bucket is cut does not matter."""
    results = []
    for chunk in (1, 100, 1 << 20):
        monkeypatch.setattr("hina_kohya.core.bucket.CPU_CHUNK", chunk)
        params = make_params(shapes=shapes)
        train(make(params), params, steps)
        results.append(params)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def rows_and_columns_may_be_permuted(make, dtype=torch.float64, rtol=0.0, atol=0.0):
    generator = torch.Generator().manual_seed(3)
    rows, columns = torch.randperm(7, generator=generator), torch.randperm(5, generator=generator)
    results = []
    for permute in (lambda x: x, lambda x: x[rows][:, columns]):
        params = {"head.weight": torch.nn.Parameter(permute(make_params(dtype)["head.weight"].detach()).clone())}
        optimizer = make(params)
        for step in range(20):
            grad = torch.randn(7, 5, generator=torch.Generator().manual_seed(step), dtype=dtype)
            params["head.weight"].grad = permute(grad).clone()
            optimizer.step()
        results.append(params["head.weight"].detach())
    torch.testing.assert_close(results[0][rows][:, columns], results[1], rtol=rtol, atol=atol)


def spares_neighbours(make, bad, shapes=None, victims="lora_unet_a.", steps=5):
    """`bad`, a value by step, in gradients of victims (by prefix) leaves each as it is, and changes no other by a bit.

    Returns the optimizer and its victims.
    """
    healthy, poisoned = make_params(shapes=shapes), make_params(shapes=shapes)
    names = [name for name in healthy if name.startswith(victims)]
    assert names
    for params, poison in ((healthy, {}), (poisoned, bad)):
        optimizer = make(params)
        for step in range(steps):
            set_grads(params, step)
            if step in poison:
                for name in names:
                    params[name].grad.flatten()[0] = poison[step]
                optimizer.plan()  # shows the state before the first step, too
                before = {name: copies(optimizer, params[name]) for name in names}
            optimizer.step()
            if step in poison:
                for name in names:
                    now = copies(optimizer, params[name])
                    assert all(torch.equal(now[key], value) for key, value in before[name].items()), name
    assert all(poisoned[name].isfinite().all() for name in names)
    assert all(torch.equal(healthy[name], poisoned[name]) for name in healthy.keys() - set(names))
    return optimizer, {name: poisoned[name] for name in names}


def copies(optimizer, param):
    """A parameter and all that is kept of it."""
    return {"": param.detach().clone()} | {key: value.clone() for key, value in optimizer.state[param].items()}


def bears_zeros(make):
    """Odd shapes, zero parameters and zero gradients stay finite."""
    params = make_params()
    params |= {"empty": torch.nn.Parameter(torch.zeros(0, 3)), "zero": torch.nn.Parameter(torch.zeros(5, 5))}
    optimizer = make(params)
    for step in range(8):
        set_grads(params, step)
        for param in params.values():
            if step in (0, 1, 4):
                param.grad.zero_()
        optimizer.step()
    assert all(param.isfinite().all() for param in params.values())


def updates_differ(make, other, steps, shapes=None):
    """Of two optimizers with the same parameters and gradients."""
    results = []
    for each in (make, other):
        params = make_params(shapes=shapes)
        train(each(params), params, steps)
        results.append(params["head.weight"].detach())
    assert not torch.equal(*results)


def left_alone(make, value, pooled=False):
    """At one step, `value` in two parameters of two modules: they, and all that is kept of them, stay as they are."""
    victims = ["lora_unet_a.lora_up.weight", "head.weight"]
    results = []
    for poison in (False, True):
        params = make_params(shapes=table.SHAPES)
        optimizer = make(params)
        for step in range(4):
            set_grads(params, step)
            if poison and step in (0, 2):
                for victim in victims:
                    params[victim].grad.flatten()[1] = value
                optimizer.plan()
                before = {victim: copies(optimizer, params[victim]) for victim in victims}
            optimizer.step()
            if poison and step in (0, 2):
                for victim in victims:
                    now = copies(optimizer, params[victim])
                    assert all(torch.equal(now[key], kept) for key, kept in before[victim].items()), victim
        results.append(params)
        if poison:
            kept = [x for entry in optimizer.state.values() for x in entry.values()]
            assert all(x.isfinite().all() for x in (*params.values(), *kept))
            named = report.information(optimizer)["training_stats"]["non_finite_steps"]
            assert named == dict.fromkeys(victims, 2)
    others = [key for key in table.SHAPES if key not in victims and not key.startswith("lora_unet_a.")]
    assert pooled or all(torch.equal(results[0][key], results[1][key]) for key in others)
