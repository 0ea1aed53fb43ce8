"""bf16 parameters, accumulated gradients, loss scaling, blocks that are swapped: what trainers do around a step."""

import math

import pytest
import torch

from hina_kohya import HinaAdamW
from hina_kohya.core import plan as plans
from hina_kohya.core.bucket import Bucket
from tests.support import promises
from tests.support.chains import STATES
from tests.support.stepping import make_params, set_grads, train

states = pytest.mark.parametrize("state", STATES)


@pytest.mark.slow
@states
def test_bf16_parameters_go_where_fp32_ones_go(state):
    """A step of 1e-5 is a hundredth of what bf16 can show near 1: on average it is taken all the same."""
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        params = {f"m{i}.weight": torch.nn.Parameter(torch.ones(32, 16, dtype=dtype)) for i in range(8)}
        optimizer = HinaAdamW(params.items(), lr=1e-5, weight_decay=0.0, state=state)
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(8, 32, 16, generator=generator)
        for _ in range(60):
            for param, drift in zip(params.values(), mean, strict=True):
                param.grad = (drift + torch.randn(32, 16, generator=generator)).to(dtype)
            optimizer.step()
        moved.append(torch.cat([param.detach().float().flatten() - 1 for param in params.values()]))
    exact, rounded = moved
    share = (exact * rounded).mean() / exact.square().mean()  # of the way, along it
    assert 0.7 < share < 1.3
    assert (rounded != 0).any()


@states
def test_gradients_accumulated_in_bf16_and_scaled_step_as_one(state):
    """Four micro-batches, a scaler, clipping: what a trainer does between two steps."""
    results = []
    for scaled in (False, True):
        params = make_params()
        optimizer = HinaAdamW(params.items(), lr=1e-3, state=state)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        for step in range(4):
            optimizer.zero_grad()
            for micro in range(4):
                generator = torch.Generator().manual_seed(100 * step + micro)
                loss = sum((param * torch.randn(param.shape, generator=generator)).sum() for param in params.values())
                scaler.scale(loss / 4).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        results.append(params)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=1e-5, atol=1e-6)


def test_a_scaler_that_found_inf_keeps_steps_and_state():
    params = make_params()
    optimizer = HinaAdamW(params.items(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale(sum(param.square().sum() for param in params.values()) * (math.inf if bad else 1.0)).backward()
        before = {name: promises.copies(optimizer, param) for name, param in params.items()}
        scaler.step(optimizer)
        scaler.update()
        if bad:
            for name, param in params.items():
                now = promises.copies(optimizer, param)
                assert all(torch.equal(now[key], value) for key, value in before[name].items())
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {2}


class Elsewhere(torch.nn.Parameter):
    """A parameter that says it is on another device while it is swapped out."""

    away = False

    @property
    def device(self):
        return torch.device("cpu", 1) if type(self).away else torch.Tensor.device.__get__(self)


@pytest.fixture
def swapped(monkeypatch):
    """Parameters of an optimizer that has stepped once; where a swapped one is fetched from is counted."""
    Elsewhere.away = False
    fetched = []
    here = Bucket._here

    def fetch(self, tensors):
        fetched.extend(tensor for tensor in tensors if tensor.device != self.key.device)
        return here(self, tensors)

    monkeypatch.setattr(Bucket, "_here", fetch)
    built = []
    make = plans.Plan.__init__
    monkeypatch.setattr(plans.Plan, "__init__", lambda self, *args: (built.append(self), make(self, *args))[1])
    params = {f"m{i}.weight": Elsewhere(torch.ones(4, 6)) for i in range(3)}
    optimizer = HinaAdamW(params.items(), lr=1e-2)
    yield optimizer, params, built, fetched
    Elsewhere.away = False


def test_blocks_that_are_swapped_out_for_a_step_rebuild_no_plan(swapped):
    optimizer, params, built, fetched = swapped
    for step in range(8):
        set_grads(params, step)
        Elsewhere.away = step % 2 == 1
        optimizer.step()
    assert len(built) == 1
    assert len(fetched) == 4 * 2 * 3 - 4 * 3  # parameters, four times; their gradients stayed
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {8}


def test_what_has_moved_for_good_takes_its_state_along(swapped):
    optimizer, params, _, _ = swapped
    train(optimizer, params, 2)
    before = {name: promises.copies(optimizer, param) for name, param in params.items()}
    Elsewhere.away = True
    plan = optimizer.plan()
    assert [plan.follows() for _ in range(3)] == [True, False, False]
    Elsewhere.away = False
    assert plan.follows()
    optimizer.replan()
    optimizer.plan()
    for name, param in params.items():
        now = promises.copies(optimizer, param)
        assert all(torch.equal(now[key], value) for key, value in before[name].items())
