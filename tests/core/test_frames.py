"""Many small matrices of many shapes, stepped in common frames: what it costs, and that nothing else changes."""

import math
import time

import pytest
import torch

from hina_kohya import AdaptiveHinaAdamW, HinaAdamW
from hina_kohya.core import frames
from hina_kohya.core.registry import techniques
from tests.support import promises, table
from tests.support.chains import STATES
from tests.support.checkpoints import copy_of, through_file
from tests.support.stepping import make_params, set_grads, train


@pytest.fixture
def framed(monkeypatch):
    monkeypatch.setattr(frames, "MANY", 0)


def of_many_shapes(number, dtype=torch.float32):
    return make_params(dtype, shapes={f"layer{i}.weight": (2 + i % 30, 3 + i // 30) for i in range(number)})


def odd(shape):
    """No frame is of this shape, and factors still fit each other."""
    return tuple(side + 1 if side > 1 and not side % 2 else side for side in shape)


def cpu_time(step):
    def once():
        start = time.process_time()
        step()
        return time.process_time() - start

    once()
    return min(once() for _ in range(3))


@pytest.mark.slow
def test_a_thousand_shapes_cost_about_what_they_cost_torch():
    """2.5 times on a quiet machine; 20 to 30 times without frames."""
    params = of_many_shapes(1000)
    set_grads(params, 0)
    torchs = torch.optim.AdamW(params.values(), foreach=False)
    assert cpu_time(HinaAdamW(params.items(), state="8bit").step) < 6 * cpu_time(torchs.step)


@pytest.mark.slow
def test_operations_go_with_frames():
    """Some 160 a shape without them."""
    assert promises.operations(lambda params: HinaAdamW(params.items()), of_many_shapes(900)) < 10 * 900


@pytest.mark.parametrize("name", sorted(techniques()))
def test_as_alone(name, monkeypatch):
    """Every technique, also on what has no gradient for a step, and is then a step behind."""
    results = []
    for many in (math.inf, 0):
        monkeypatch.setattr(frames, "MANY", many)
        params = make_params(torch.float64, shapes={name: odd(shape) for name, shape in table.SHAPES.items()})
        optimizer = table.maker(name)(params)
        for step in range(6):
            set_grads(params, step)
            for index, param in enumerate(params.values()):
                if (index + step) % 5 == 4:
                    param.grad = None
            optimizer.step()
        results.append(params)
    for key, param in results[0].items():
        torch.testing.assert_close(results[1][key], param, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("cls", [HinaAdamW, AdaptiveHinaAdamW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.usefixtures("framed")
def test_resumes_exactly(cls, dtype):
    make = lambda params: cls(params.items(), lr=1e-2)
    _, optimizer, params = promises.resumes_exactly(make, make_params(dtype))
    assert any(isinstance(bucket, frames.Framed) for bucket in optimizer.plan().buckets)
    for param in params.values():
        shown = optimizer.state[param]
        assert all(each.numel() <= max(param.numel(), 1) for key, each in shown.items() if "exp_avg" in key)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("first", [0, math.inf], ids=["into no frames", "into frames"])
def test_a_checkpoint_knows_no_frames(first, state, monkeypatch):
    """A model may have more shapes, or fewer, when it goes on: its averages are taken over by their values."""
    monkeypatch.setattr(frames, "MANY", first)
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-2, state=state)
    train(optimizer, params, 4)
    saved, resumed = through_file(optimizer.state_dict()), copy_of(params)
    monkeypatch.setattr(frames, "MANY", math.inf if first == 0 else 0)
    second = HinaAdamW(resumed.items(), lr=1e-2, state=state)
    second.load_state_dict(saved)
    for key in params:
        set_grads(params, 4), set_grads(resumed, 4)
        before = params[key].detach().clone()
    optimizer.step(), second.step()
    for key, param in params.items():
        torch.testing.assert_close(resumed[key], param, rtol=0.02, atol=2e-3 if state == "8bit" else 4e-4)
    assert not torch.equal(before, params[key])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.usefixtures("framed")
def test_a_bad_gradient_in_a_frame(value):
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-2)
    train(optimizer, params, 2)
    set_grads(params, 2)
    params["head.weight"].grad[1, 2] = value
    before = copy_of(params)
    optimizer.step()
    for key, param in params.items():
        assert torch.equal(param, before[key]) is (key == "head.weight")
    assert list(optimizer.get_optimization_info()["training_stats"]["non_finite_steps"]) == ["head.weight"]


@pytest.mark.parametrize("own", [(9, 10), (10, 9), (9, 9), (1, 7), (5, 4), (63, 64), (1, 1)])
def test_a_frame_keeps_which_side_is_the_longer_one(own):
    params = make_params(shapes={"layer.weight": own})
    key = HinaAdamW(params.items()).plan().buckets[0].key
    m, n = frames._frame(key).shape
    assert m >= own[0]
    assert n >= own[1]
    assert (m > n, m < n) == (own[0] > own[1], own[0] < own[1])


@pytest.mark.usefixtures("framed")
def test_channels_last_and_gradient_layouts():
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        params = make_params(shapes={"conv.weight": (6, 5, 3, 3)})
        param = params["conv.weight"]
        param.data = param.data.to(memory_format=memory_format)
        optimizer = HinaAdamW(params.items(), lr=1e-2)
        for step in range(3):
            set_grads(params, step)
            param.grad = param.grad.to(memory_format=memory_format)
            optimizer.step()
        results.append(param.detach())
    assert torch.equal(*results)
