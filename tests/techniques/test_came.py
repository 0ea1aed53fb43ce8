"""CAME as it runs in the optimizer: against its oracle, the authors' package, and what its state promises."""

import gc
from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.core.state.codec import codec
from hina_kohya.core.technique import Slot
from hina_kohya.optim import report
from tests.oracles.came import CAME
from tests.oracles.cautious import Cautious
from tests.oracles.tam import Torque
from tests.support import promises
from tests.support.chains import STATES, chains_of, states
from tests.support.checkpoints import through_file
from tests.support.memory import live_bytes, lora_set
from tests.support.oracle_runs import DECAY, MATRICES, STEPS, close, gradients, rate, sparse
from tests.support.stepping import make_params, set_grads, train

SHAPES = MATRICES | {"one": (1,), "column.weight": (6, 1), "row.weight": (1, 6), "point.weight": (6, 4, 1, 1)}
OPTIONS = {
    "defaults": {},
    "bias_correct_confidence": {"bias_correct_confidence": True},
    "beta1_decay": {"beta1_decay": 0.95},
    "beta1_decay of little": {"beta1": 0.3, "beta1_decay": 0.95},
    "beta1_decay to a floor": {"beta1_decay": 0.5, "beta1_floor": 0.85},
    "others": {"beta1": 0.8, "beta2": 0.9, "beta3": 0.95, "eps1": 1e-3, "eps2": 1e-2, "clip_threshold": 0.7},
}


def oracle(beta1=0.9, beta2=0.999, beta3=0.9999, eps1=1e-30, eps2=1e-16, **rest):
    return CAME((beta1, beta2, beta3), (eps1, eps2), weight_decay=DECAY, **rest)


def came(params, state="8bit", others=(), lr=1e-3, **options):
    chosen = [build("came", **options), build("weight_decay"), *map(build, others)]
    return HinaOptimizer(params.items(), chosen, lr=lr, weight_decay=0.01, state=state)


def run_came(options, others=(), holes=False):
    chosen = [build("came", **options), build("weight_decay"), *map(build, others)]
    params = {name: torch.nn.Parameter(torch.from_numpy(p)) for name, p in starts().items()}
    optimizer = HinaOptimizer(params.items(), chosen, lr=1.0, weight_decay=DECAY, state="fp32", decay_roles="all")
    grads = gradients(SHAPES, SHAPES, STEPS)
    for step, by_name in enumerate(sparse(grads) if holes else grads):
        optimizer.param_groups[0]["lr"] = rate(step)
        for name, param in params.items():
            param.grad = torch.from_numpy(by_name[name])
        optimizer.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def starts():
    generator = np.random.default_rng(1)
    return {name: generator.normal(size=shape) * 0.5 for name, shape in SHAPES.items()}


def against(final, make, holes=False):
    grads = gradients(SHAPES, SHAPES, STEPS)
    grads = sparse(grads) if holes else grads
    for name, p in starts().items():
        each = make()
        for step, by_name in enumerate(grads):
            p = each.step(p, by_name[name], rate(step))
        close(final[name], p)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_alone(options, holes):
    against(run_came(options, holes=holes), lambda: oracle(**options), holes)


@pytest.mark.slow
def test_under_cautious():
    against(run_came({}, ["cautious"]), lambda: Cautious(CAME(), weight_decay=DECAY))


@pytest.mark.slow
def test_with_tam_the_residual_is_that_of_the_undamped_gradient():
    class Damped(CAME):
        torque = None

        def direction(self, g, damping=None):
            self.torque = self.torque or Torque()
            return super().direction(g, self.torque)

    against(run_came({}, ["tam"]), lambda: Damped(weight_decay=DECAY))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, OPTIONS["others"]], ids=["defaults", "others"])
def test_equal_to_came_pytorch_in_fp32(options):
    """A convolution equals what the authors' code makes of it as a matrix."""
    official_class = pytest.importorskip("came_pytorch").CAME
    params = make_params()
    theirs = [
        torch.nn.Parameter(p.detach().clone().flatten(1) if p.dim() > 1 else p.detach().clone())
        for p in params.values()
    ]
    b1, b2, b3, e1, e2, d = (
        options.get(name, getattr(build("came"), name))
        for name in ("beta1", "beta2", "beta3", "eps1", "eps2", "clip_threshold")
    )
    official = official_class(theirs, lr=1.0, betas=(b1, b2, b3), eps=(e1, e2), clip_threshold=d, weight_decay=DECAY)
    chosen = [build("came", **options), build("weight_decay")]
    mine = HinaOptimizer(params.items(), chosen, lr=1.0, weight_decay=DECAY, state="fp32", decay_roles="all")
    for step in range(50):
        set_grads(params, step)
        for group in (*mine.param_groups, *official.param_groups):
            group["lr"] = rate(step) / 10
        for param, other in zip(params.values(), theirs, strict=True):
            other.grad = param.grad.clone().view(other.shape)
        mine.step()
        official.step()
        for param, other in zip(params.values(), theirs, strict=True):
            torch.testing.assert_close(param.detach().view(other.shape), other.detach(), rtol=1e-6, atol=1e-6)


CHANGES = [
    {"beta1": 0.5}, {"beta2": 0.9}, {"beta3": 0.9}, {"eps1": 1.0}, {"eps2": 1.0}, {"clip_threshold": 0.1},
    {"bias_correct_confidence": True}, {"dense": True}, {"beta1_decay": 0.9},
]  # fmt: skip


@pytest.mark.parametrize("options", CHANGES, ids=str)
def test_every_option_changes_the_update(options):
    promises.updates_differ(came, partial(came, **options), steps=6)


@pytest.mark.parametrize(("start", "beta1", "decay", "floor"), [(0.9, 0.4, 1e-6, 0.4), (0.9, 0.7, 1e-6, 0.7)])
def test_beta1_falls_to_its_floor_and_no_decay_is_no_floor(start, beta1, decay, floor):
    """After the first step, whose average is of nothing, a fast decay is the same as the floor itself."""
    results = []
    for chosen in ({"beta1": start, "beta1_decay": decay, "beta1_floor": floor}, {"beta1": beta1}, {"beta1": start}):
        params = make_params()
        zero = {name: torch.zeros_like(param) for name, param in params.items()}
        optimizer = came(params, "fp32", lr=0.0, **chosen)
        for name, param in params.items():
            param.grad = zero[name]
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 1e-3
        train(optimizer, params, 4, start=1)
        results.append(params["head.weight"].detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(results[0], results[2], rtol=1e-3)
    plain, floored = make_params(), make_params()
    train(came(plain, "fp32", beta1=0.3), plain, 4)
    train(came(floored, "fp32", beta1=0.3, beta1_floor=0.8), floored, 4)
    assert all(torch.equal(plain[name], floored[name]) for name in plain)


@pytest.mark.slow
def test_how_large_the_first_steps_are():
    """Without the correction 11 lr at first and 4 at the hundredth; with it never more than 2."""
    sizes = {}
    for corrected in (False, True):
        p = torch.nn.Parameter(torch.zeros(64, 64))
        optimizer = HinaOptimizer(
            [p], [build("came", bias_correct_confidence=corrected)], lr=1.0, weight_decay=0.0, state="fp32"
        )
        sizes[corrected] = []
        for step in range(100):
            before = p.detach().clone()
            set_grads({"p": p}, step)
            optimizer.step()
            sizes[corrected].append((p.detach() - before).square().mean().sqrt().item())
    assert 10 < sizes[False][0] < 12
    assert sizes[False][99] > 2
    assert max(sizes[True]) < 2


def test_rows_and_columns_may_be_permuted():
    make = partial(came, state="fp32", bias_correct_confidence=True)
    promises.rows_and_columns_may_be_permuted(make, rtol=1e-12, atol=1e-13)


@promises.dtypes
@states
def test_k_and_k_is_2k(state, dtype):
    promises.resumes_exactly(partial(came, state=state), make_params(dtype))


@pytest.mark.parametrize("target", STATES)
@states
def test_another_codec_takes_over_the_values(state, target):
    for slot in ("second", "instability"):
        mine, theirs = promises.read_by_another_codec(came, state, target, "came", slot)
        assert mine.shape == (1, 1, 60)
        torch.testing.assert_close(mine, theirs, rtol=0.055, atol=0)


def test_a_checkpoint_of_another_rank_is_refused():
    params, wider = (make_params(shapes={"lora_unet_a.lora_up.weight": (10, rank)}) for rank in (4, 8))
    optimizer = came(params)
    train(optimizer, params, 1)
    with pytest.raises(ValueError, match=r"has 80 values, the checkpoint's came.exp_avg 40"):
        came(wider).load_state_dict(through_file(optimizer.state_dict()))


@states
def test_nan_in_one_matrix_does_not_reach_another(state):
    promises.spares_neighbours(partial(came, state=state), {2: torch.nan})


@states
def test_odd_shapes_and_zero_gradients(state):
    """The first gradient of lora_down is exactly 0: every factor is then the eps alone, down to 1e-33."""
    params = make_params()
    params |= {"empty": torch.nn.Parameter(torch.zeros(0, 3)), "zero": torch.nn.Parameter(torch.zeros(5, 5))}
    optimizer = came(params, state)
    for step in range(6):
        set_grads(params, step)
        for param in params.values():
            if step in (0, 1, 4):
                param.grad.zero_()
            elif param.dim() > 1 and step == 3:
                param.grad[:1] = 0
        before = {name: param.detach().clone() for name, param in params.items()}
        optimizer.step()
        for name, param in params.items():
            assert param.isfinite().all(), name
            if param.numel():
                assert (param - before[name]).square().mean().sqrt() < 2e-2, (name, step)


def test_slots_follow_the_shape():
    params = make_params()
    optimizer = came(params, "fp32")
    train(optimizer, params, 1)
    shapes = {
        key: tuple(v.shape)
        for key, v in optimizer.state[params["lora_unet_c.lora_down.weight"]].items()
        if key != "step"
    }
    assert shapes == {
        "came.exp_avg": (4, 3, 3, 3),
        "came.second": (1, 31),
        "came.instability": (1, 31),
    }
    assert set(optimizer.state[params["head.bias"]]) == {"step", "came.exp_avg", "came.exp_avg_sq"}


@pytest.mark.slow
def test_bytes_a_parameter_at_rank_16():
    found = {}
    for state in STATES:
        params = make_params(shapes=lora_set(rank=16))
        for step in range(2):
            set_grads(params, step)
        before = live_bytes()
        optimizer = came(params, state)
        for _ in range(3):
            optimizer.step()
        total = sum(param.numel() for param in params.values())
        found[state] = (live_bytes() - before) / total, report.memory(optimizer)["bytes_per_parameter"]
        del optimizer
        gc.collect()
    assert found["8bit"][0] <= found["8bit"][1] * 1.01 <= 1.16
    assert found["bf16"][1] <= 2.3
    assert found["fp32"][1] <= 4.6


@pytest.mark.slow
def test_operations_go_with_shapes_and_nothing_waits():
    for state, limit in (("8bit", 1710), ("bf16", 1500), ("fp32", 730)):
        make = partial(came, state=state, bias_correct_confidence=True)
        assert promises.operations_go_with_shapes(make) <= limit, state


@states
def test_chunks_do_not_change_a_bit(state, monkeypatch):
    promises.chunks_change_no_bit(monkeypatch, partial(came, state=state))


@pytest.mark.slow
def test_one_compiled_graph_for_all_matrices(monkeypatch):
    promises.one_compiled_graph_for_all_matrices(monkeypatch, [build("came")])


def test_it_yields_to_lora_rite():
    params = make_params()
    optimizer = came(params, others=["lora_rite"])
    moments = {name: each[0].name for name, each in zip(params, chains_of(optimizer), strict=True)}
    assert moments["lora_unet_a.lora_up.weight"] == "lora_rite"
    assert moments["head.weight"] == "came"


# The 8-bit code of the factors


@pytest.mark.slow
def test_an_8bit_factor_follows_slow_changes():
    """Rounded to nearest, a value that moves by 0.1 % a step never leaves its code, one of which is 5 % wide."""
    eight, target = codec("8bit"), torch.tensor([1.0, 0.05, 0.3, 0.6]).view(1, 4, 1).expand(400, 4, 1)
    seeds = torch.arange(400, dtype=torch.int32).view(400, 1, 1) * 0x5BD1E995
    kept = eight.encode(torch.ones(400, 4, 1), Slot.FACTOR, seeds)
    for step in range(2000):
        x = eight.decode(kept, 4, 1, Slot.FACTOR)
        kept = eight.encode(x + 2e-3 * (target - x), Slot.FACTOR, seeds ^ step, (x, kept))
    reached = eight.decode(kept, 4, 1, Slot.FACTOR)
    torch.testing.assert_close(reached.mean(0), (0.982 * target + 0.018)[0], rtol=0.03, atol=0)
    assert (reached.std(0) < 0.2 * reached.mean(0)).all()
