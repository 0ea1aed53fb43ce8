"""Edge suppression through the real optimizer: against its oracle and AdaGC, and what counts as a spike."""

from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.registry import build
from tests.oracles.adamw import AdamW
from tests.oracles.edge_suppression import Before, EdgeSuppression
from tests.support import promises
from tests.support.adam_chain import optimizer, run, starts
from tests.support.chains import STATES
from tests.support.oracle_runs import DECAY, MATRICES, close, gradients, rate
from tests.support.signals import signal
from tests.support.stepping import make_params

SHAPES = MATRICES | {"one": (1,), "column.weight": (6, 1), "point.weight": (6, 4, 1, 1)}
SPIKES = {9: 30.0, 25: 4.0, 26: 100.0, 40: 2.0, 45: 1e6}
OPTIONS = [{}, {"threshold": 0.3}, {"threshold": 0.0}, {"penalty": 1.0}, {"beta": 0.8}, {"beta": 0.0}, {"warmup": 5}]


def spiky(shapes, steps=60):
    """Spikes of several sizes, zeros at first, and zeros on the way."""
    grads = gradients(shapes, shapes, steps)
    for step, by_name in enumerate(grads):
        for name in by_name:
            by_name[name] *= 0.0 if step in (0, 1, 2, 30) else SPIKES.get(step, 1.0)
    return grads


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_against_the_oracle(options):
    grads = spiky(SHAPES)
    final, mine = run("edge_suppression", SHAPES, grads, **options)
    for (name, p), entry in zip(starts(SHAPES).items(), mine.state.values(), strict=True):
        oracle = EdgeSuppression(**options)
        each = Before(oracle, AdamW(), DECAY)
        for step, by_name in enumerate(grads):
            p = each.step(p, by_name[name], rate(step))
        close(final[name], p)
        assert entry["edge_suppression.spikes"].item() == oracle.spikes > 0
        np.testing.assert_allclose(entry["edge_suppression.norm"].item(), oracle.gamma, rtol=1e-10)
        assert entry["edge_suppression.seen"].item() == 56


def adagc(params, threshold, beta):
    official = pytest.importorskip("pytorch_optimizer").AdaGC
    return official(
        params, lr=1e-2, beta=beta, lambda_abs=float("inf"), lambda_rel=1 / (1 - threshold), warmup_steps=1,
        weight_decay=0.0, eps=1e-8,
    )  # fmt: skip


@pytest.mark.parametrize(("threshold", "beta"), [(0.6, 0.98), (1 - 1 / 1.05, 0.9)])
def test_penalty_1_is_adagc_after_the_warm_up(threshold, beta):
    """From a first norm that is all the history there is, with the average's rate already at 1 - beta."""
    generator = np.random.default_rng(4)
    grads = [generator.normal(size=(7, 5)) * (generator.choice([1, 1, 5, 50]) if t else 1) for t in range(60)]
    start = starts({"p": (7, 5)})["p"]
    theirs, mine = (torch.nn.Parameter(torch.from_numpy(start.copy())) for _ in range(2))
    official = adagc([theirs], threshold, beta)
    ours = optimizer({"p": mine}, "edge_suppression", lr=1e-2, threshold=threshold, beta=beta, penalty=1.0, warmup=1)
    p, oracle, moment = start, EdgeSuppression(threshold, 1.0, beta, warmup=1), AdamW()
    for step, g in enumerate(grads):
        theirs.grad, mine.grad = (torch.from_numpy(g.copy()) for _ in range(2))
        official.step()
        ours.step()
        p = p - 1e-2 * moment.direction(oracle(g))
        if step == 0:  # as if this norm had been there for ever
            ours.state[mine]["edge_suppression.seen"].fill_(1e6)
            oracle.norms = oracle.norms * 5000
    close(p, theirs.detach().numpy())
    close(mine.detach().numpy(), theirs.detach().numpy())
    assert oracle.spikes > 10


@pytest.mark.parametrize("options", [*OPTIONS[1:], {"penalty": 0.0}], ids=str)
def test_every_option_changes_the_update(options):
    shapes = {"head.weight": (7, 5)}
    finals = [run("edge_suppression", shapes, spiky(shapes), **chosen)[0]["head.weight"] for chosen in ({}, options)]
    assert not np.array_equal(*finals)


def test_penalty_0_only_counts():
    grads = spiky(SHAPES)
    final, mine = run("edge_suppression", SHAPES, grads, penalty=0.0)
    for name, p in starts(SHAPES).items():
        oracle = AdamW(weight_decay=DECAY)
        for step, by_name in enumerate(grads):
            p = oracle.step(p, by_name[name], rate(step))
        close(final[name], p)
    assert all(entry["edge_suppression.spikes"].item() > 0 for entry in mine.state.values())


def filtered(name, s_grads, slots, **options):
    """What becomes of a stream of gradients [N, m, n]; final state."""
    technique, out = build(name, **options), []
    state = {slot: torch.zeros(len(s_grads[0]), 1, 1, dtype=s_grads[0].dtype) for slot in slots}
    for g in s_grads:
        out.append(technique.apply(signal(dtype=g.dtype, grad=g), state).grad)
    return out, state


SLOTS = ("norm", "seen", "spikes")


def constant(length, dtype=torch.float64):
    g = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return [g.clone() for _ in range(length)]


@pytest.mark.parametrize(("penalty", "left"), [(0.0, 10.0), (0.1, 9.25), (1.0, 2.5)])
def test_a_spike_of_ten_times_loses_that_share_beyond_two_and_a_half(penalty, left):
    grads = constant(30)
    grads[25] = grads[25] * 10
    out, state = filtered("edge_suppression", grads, SLOTS, penalty=penalty)
    torch.testing.assert_close(out[25], grads[0] * left)
    assert all(torch.equal(a, b) for i, (a, b) in enumerate(zip(out, grads, strict=True)) if i != 25)
    assert (state["spikes"] == 1).all()


def test_the_warm_up_only_records():
    for at, count in ((19, 0), (20, 1)):
        grads = constant(21)
        grads[at] = grads[at] * 100
        out, state = filtered("edge_suppression", grads, SLOTS)
        assert torch.equal(out[at], grads[at]) == (count == 0)
        assert (state["spikes"] == count).all()
        assert (state["norm"] > 2 * grads[0].norm(dim=(1, 2), keepdim=True)).all()


@pytest.mark.parametrize("zeros", [1, 300])
def test_gradients_that_grow_from_zero_are_no_spikes(zeros):
    """As those of lora_down do while lora_up leaves its zero start."""
    grads = [g * max(0, t - zeros + 1) for t, g in enumerate(constant(zeros + 200))]
    out, state = filtered("edge_suppression", grads, SLOTS)
    assert not state["spikes"].any()
    assert (state["seen"] == 200).all()
    assert all(torch.equal(a, b) for a, b in zip(out, grads, strict=True))


def test_no_warm_up_needs_one_gradient():
    grads = [torch.zeros(2, 3, 4), *constant(2, torch.float32)]
    _, state = filtered("edge_suppression", grads, SLOTS, warmup=0)
    assert not state["spikes"].any()


def test_scale_and_order_do_not_matter():
    generator = torch.Generator().manual_seed(3)
    grads = [
        torch.randn(2, 6, 5, generator=generator, dtype=torch.float64) * (20 if t % 9 == 8 else 1) for t in range(60)
    ]
    rows, columns = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    out, state = filtered("edge_suppression", grads, SLOTS)
    scaled, same = filtered("edge_suppression", [g * 2.0**-40 for g in grads], SLOTS)
    assert all(torch.equal(a * 2.0**-40, b) for a, b in zip(out, scaled, strict=True))
    assert torch.equal(state["spikes"], same["spikes"])
    assert (state["spikes"] > 2).all()
    moved, _ = filtered("edge_suppression", [g[:, rows][:, :, columns] for g in grads], SLOTS)
    for a, b in zip(out, moved, strict=True):
        torch.testing.assert_close(a[:, rows][:, :, columns], b, rtol=1e-13, atol=0)


@pytest.mark.slow
@promises.dtypes
def test_resume_is_exact(dtype):
    for state in STATES:
        make = partial(optimizer, name="edge_suppression", state=state, decay=DECAY, warmup=4, threshold=0.0)
        promises.resumes_exactly(make, make_params(dtype), steps=6)


@pytest.mark.slow
def test_bad_neighbours_zeros_and_cost(monkeypatch):
    make = partial(optimizer, name="edge_suppression", warmup=2)
    for bad in (torch.nan, torch.inf):
        promises.spares_neighbours(make, {3: bad}, victims="lora_unet_a.lora_down", steps=8)
    for state in STATES:
        promises.bears_zeros(partial(make, state=state))
    sharp = partial(make, warmup=1, threshold=0.0)
    promises.operations_go_with_shapes(sharp, sizes=(2, 4))
    promises.chunks_change_no_bit(monkeypatch, sharp)


@pytest.mark.parametrize(
    "options", [{"threshold": 1.0}, {"threshold": -0.1}, {"penalty": 1.1}, {"beta": 1.0}, {"warmup": -1}], ids=str
)
def test_bounds(options):
    with pytest.raises(ValueError, match="is outside"):
        build("edge_suppression", **options)
