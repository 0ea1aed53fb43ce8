"""The learning rate mask in the optimizer: against its oracle, and what its state promises."""

from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.numerics import bits
from hina_kohya.optim import report
from tests.oracles.automagic_mask import AutomagicMask
from tests.oracles.came import CAME
from tests.support import promises
from tests.support.chains import states
from tests.support.counting import small_matrices
from tests.support.oracle_runs import DECAY, MATRICES, close, rate, start
from tests.support.stepping import make_params

STEPS = 60
rows = pytest.mark.parametrize("per_row", [False, True], ids=["element", "row"])


def masked(params, state="fp32", moment="adam", lr=1e-3, **options):
    chosen = [build(moment), build("weight_decay"), build("automagic_mask", **options)]
    return HinaOptimizer(params.items(), chosen, lr=lr, weight_decay=DECAY, state=state, decay_roles="all")


def gradients(shape, seed):
    """Signs that agree for a while, with exact zeros at the start and in between."""
    rng = np.random.default_rng(seed)
    mean = rng.standard_normal(shape)
    for step in range(STEPS):
        g = mean * np.sin(0.1 * step + mean) + 0.5 * rng.standard_normal(shape)
        yield np.zeros(shape) if step == 0 else g * (rng.random(shape) > 0.2)


@rows
@pytest.mark.parametrize("moment", ["adam", "came"])
@pytest.mark.parametrize(
    "limits", [{}, {"bump": 0.5, "low": 0.3, "high": 4.0}, {"until": 20}], ids=["defaults", "narrow", "until"]
)
def test_against_the_oracle(limits, moment, per_row):
    options = {"per_row": per_row, **limits}
    initial = start(MATRICES)
    params = {name: torch.nn.Parameter(torch.from_numpy(p.copy())) for name, p in initial.items()}
    optimizer = masked(params, moment=moment, **options)
    grads = {name: list(gradients(shape, seed)) for seed, (name, shape) in enumerate(MATRICES.items())}
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate(step)
        for name, param in params.items():
            param.grad = torch.from_numpy(grads[name][step])
        optimizer.step()
    for name, p in initial.items():
        oracle = AutomagicMask(**options, moment=CAME() if moment == "came" else None, weight_decay=DECAY)
        for step, g in enumerate(grads[name]):
            p = oracle.step(p, g, rate(step))
        close(params[name].detach().numpy(), p)


@rows
def test_it_rises_falls_and_stays_within_its_bounds(per_row):
    technique = build("automagic_mask", bump=0.1, low=0.5, high=3.0, per_row=per_row)
    p = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = HinaOptimizer([p], [build("adam"), technique], lr=1.0, weight_decay=0.0)
    seen = []
    for step in range(60):
        p.grad = torch.ones(3, 4) * ((-1) ** step if step > 29 else 1)
        p.grad[2] = 0
        optimizer.step()
        seen.append(
            technique.multiplier(
                optimizer.plan().buckets[0].slabs["automagic_mask", "level"].read(slice(None), p.dtype)
            )
        )
    assert (seen[0] == 1).all()  # only records the sign
    torch.testing.assert_close(seen[5][:, :2], torch.full_like(seen[5][:, :2], 1.1**5))
    assert 3 / 1.1 < seen[29][0, 0, 0] <= 3
    assert 0.5 <= seen[59][0, 0, 0] < 0.5 * 1.1
    assert (seen[59][0, 2] == 1).all()  # no gradient, no opinion


CHANGES = [{"bump": 0.5}, {"low": 0.9}, {"high": 1.1}, {"per_row": True}, {"until": 4}]


def unmasked(params):
    return HinaOptimizer(params.items(), [build("adam"), build("weight_decay")], lr=1e-3, weight_decay=DECAY)


@pytest.mark.slow
@pytest.mark.parametrize("options", [None, *CHANGES], ids=str)
def test_every_option_changes_the_update(options):
    make = partial(masked, state="8bit")
    promises.updates_differ(make, unmasked if options is None else partial(make, **options), steps=12)


@pytest.mark.slow
@rows
def test_levels_freeze_after_each_parameters_own_steps(per_row):
    """One that misses gradients freezes later; forever costs no operation."""
    params, levels = {name: torch.nn.Parameter(torch.zeros(4, 5)) for name in "ab"}, []
    optimizer = masked(params, "8bit", until=6, per_row=per_row)
    for step in range(14):
        for param in params.values():
            param.grad = torch.ones(4, 5)
        if step % 2:
            params["b"].grad = None
        optimizer.step()
        levels.append([optimizer.state[p]["automagic_mask.level"].flatten()[0].item() for p in params.values()])
    begin = build("automagic_mask").start
    assert [level - begin for level, _ in levels] == [0, 1, 2, 3, 4, *[5] * 9]
    assert [level - begin for _, level in levels] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5]
    default, forever, six = (
        promises.operations(partial(masked, **until, per_row=per_row), small_matrices(4))
        for until in ({}, {"until": torch.inf}, {"until": 6})
    )
    assert default == forever < six


def test_too_many_levels_are_refused():
    with pytest.raises(
        ValueError, match=r"bump = 0.001 is too small for 0.1 to 10.0 in 254 levels; use at least 0.0183"
    ):
        build("automagic_mask", bump=0.001)
    build("automagic_mask", bump=0.0183, low=0.1, high=10.0)
    build("automagic_mask", bump=1e6, low=1e-3, high=1e3)


@rows
def test_rows_and_columns_may_be_permuted(per_row):
    promises.rows_and_columns_may_be_permuted(partial(masked, per_row=per_row), torch.float32)


@rows
@promises.dtypes
@states
@pytest.mark.parametrize("until", [torch.inf, 5])
def test_k_and_k_is_2k(until, state, dtype, per_row):
    make = partial(masked, state=state, moment="came", per_row=per_row, until=until)
    _, second, resumed = promises.resumes_exactly(make, make_params(dtype))
    codes = [second.state[param]["automagic_mask.level"] for param in resumed.values()]
    assert {code.dtype for code in codes} == {torch.uint8}
    assert all(code.any() for code in codes)


@rows
@states
def test_nan_in_one_matrix_does_not_reach_another_and_leaves_the_mask_usable(state, per_row):
    make = partial(masked, state=state, per_row=per_row)
    optimizer, victims = promises.spares_neighbours(make, {2: torch.nan})
    level = optimizer.state[victims["lora_unet_a.lora_up.weight"]]["automagic_mask.level"]
    assert (level.float() - build("automagic_mask").start).abs().max() <= 4


@rows
def test_the_reported_learning_rate_is_the_masked_one(per_row):
    p = torch.nn.Parameter(torch.zeros(6, 5))
    optimizer = HinaOptimizer([p], [build("adam"), build("automagic_mask", per_row=per_row)], lr=1e-2, weight_decay=0.0)
    assert report.effective_lr(optimizer) == [pytest.approx(1e-2)]
    for _ in range(11):
        p.grad = torch.ones(6, 5)
        optimizer.step()
    for _ in range(2):  # and asking changes nothing
        assert report.effective_lr(optimizer) == [pytest.approx(1e-2 * 1.05**10)]


def test_bytes_a_parameter_at_rank_16():
    for per_row, limit in ((False, 2.3), (True, 1.31)):
        make = partial(masked, state="8bit", moment="came", per_row=per_row)
        assert promises.bytes_a_parameter_at_rank_16(make) <= limit


@pytest.mark.slow
@rows
def test_operations_go_with_shapes_and_nothing_waits(per_row):
    assert promises.operations_go_with_shapes(partial(masked, per_row=per_row)) <= 800


@pytest.mark.parametrize("n", [1, 7, 8, 9, 40])
def test_bits_come_back(n):
    x = (torch.rand(3, 2, n, generator=torch.Generator().manual_seed(n)) > 0.5).float()
    code = bits.pack(x)
    assert code.shape == (3, 2, bits.packed(n))
    assert torch.equal(bits.unpack(code.to(torch.uint8).float(), n), x)


@pytest.mark.parametrize("technique", ["automagic_mask", "spd"])
def test_rows_without_gradient_between_others_keep_their_state(technique):
    """Then a slab is written by row numbers, where torch casts nothing: neither to a byte nor to an anchor's bf16."""
    params = [torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16)) for _ in range(4)]
    optimizer = HinaOptimizer(params, [build("adam"), build(technique)], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        for index, param in enumerate(params):
            param.grad = None if index == 1 else torch.ones_like(param)
        optimizer.step()
    assert (params[1] == 1).all()
    assert (params[0] < 1).all()
    if technique == "automagic_mask":
        assert not optimizer.state[params[1]]["automagic_mask.level"].any()
