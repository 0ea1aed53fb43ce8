"""One table of promises over every class and codec: what holds of techniques holds of the chains that ship."""

import math
import pickle
from functools import partial

import pytest
import torch

import hina_kohya
from hina_kohya.core.technique import Stage
from tests.support import promises
from tests.support.classes import CLASSES, GUARDED
from tests.support.counting import Counter, small_matrices
from tests.support.precision import Rounded, tf32
from tests.support.promises import left_alone
from tests.support.stepping import make_params, set_grads, train

EIGHT = {cls for cls in CLASSES if cls.endswith("8bit")}
CASES = [
    (cls, {"state": state})
    for cls in CLASSES
    for state in ("8bit", "bf16", "fp32")
    if cls not in EIGHT or state == "8bit"
]
ON = [
    ("HinaAdamW", {"use_tam": True, "use_agr": True, "use_orthogonal_grad": True, "use_alora": True,
                   "use_allora_rows": True, "use_kronecker_rms": True, "use_cautious_weight_decay": True}),
    ("HinaAdamW", {"use_lora_rite": True, "use_spd": True}),
    ("AdaptiveHinaAdamW", {"adaptation_strength": 1.0, "use_lr_mask": True}),
    ("AutomagicCameAMP", GUARDED),
    ("AutomagicCameAMP", {"profile": "quality_optimized", "use_lr_mask": True}),
    ("COptim", {**GUARDED, "came": True}),
]  # fmt: skip
each = pytest.mark.parametrize("cls", CLASSES)
cases = pytest.mark.parametrize(("cls", "options"), CASES, ids=str)
everything = pytest.mark.parametrize(("cls", "options"), [*CASES, *ON], ids=str)


def make(cls, params, lr=1e-3, **options):
    return getattr(hina_kohya, cls)(params.items() if isinstance(params, dict) else params, lr=lr, **options)


def steps(optimizer, param, gradients):
    """How far each entry moves at each step, in learning rates."""
    moved = []
    for gradient in gradients:
        param.grad = gradient
        before, found = param.detach().clone(), optimizer.found_rate
        optimizer.step()
        moved.append((param.detach() - before) / (optimizer.param_groups[0]["lr"] * (found or 1)))
    return torch.stack(moved)


def rms(x):
    return x.square().mean().sqrt().item()


def noise(shape, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) * 1e-3 for _ in range(count)]


# Section 1: entries that cannot move


@each
def test_one_live_row_of_4096_moves_at_most_four_learning_rates(cls):
    """`Embedding(4096, 16)` with one live row, the same at every step."""
    param = torch.nn.Parameter(torch.randn(4096, 16, generator=torch.Generator().manual_seed(0)))
    gradients = [torch.zeros(4096, 16).index_copy(0, torch.tensor([7]), g) for g in noise((1, 16), 25)]
    moved = steps(make(cls, [param], weight_decay=0.0), param, gradients)
    assert moved.abs().max() <= 4
    assert not moved[:, :7].any()
    assert rms(moved[:, 7]) > 0.1


@pytest.mark.slow
@each
def test_twelve_tokens_of_a_textual_inversion(cls):
    param = torch.nn.Parameter(torch.randn(6000, 32, generator=torch.Generator().manual_seed(0)))
    gradients = [torch.zeros(6000, 32).index_copy(0, torch.arange(12), g) for g in noise((12, 32), 20)]
    moved = steps(make(cls, [param], weight_decay=0.0), param, gradients)
    assert moved.abs().max() <= 4


@each
@pytest.mark.parametrize("shape", [(8, 320), (320, 8)], ids=str)
def test_dead_columns_and_rows_do_not_speed_up_live_ones(cls, shape):
    """99 % of the longer side dead: the live part moves no further than three times what it does by itself."""
    live = tuple(3 if size == 320 else size for size in shape)
    small = torch.nn.Parameter(torch.randn(live, generator=torch.Generator().manual_seed(0)))
    large = torch.nn.Parameter(torch.zeros(shape))
    large.data[: live[0], : live[1]] = small.data
    gradients = noise(live, 30)
    wide = [torch.nn.functional.pad(g, (0, shape[1] - live[1], 0, shape[0] - live[0])) for g in gradients]
    alone = steps(make(cls, [small], weight_decay=0.0), small, gradients)
    among = steps(make(cls, [large], weight_decay=0.0), large, wide)[:, : live[0], : live[1]]
    assert rms(among) <= 3 * rms(alone)
    assert among.abs().max() <= 3 * alone.abs().max()


@pytest.mark.slow
@each
def test_rows_that_are_active_by_turns_move_alike(cls):
    """lora_down of T-LoRA or of rank dropout: the first rank in every step, the last in one of sixteen."""
    param = torch.nn.Parameter(torch.zeros(16, 640))
    generator = torch.Generator().manual_seed(3)
    gradients = noise((16, 640), 160)
    for gradient in gradients:
        gradient[int(torch.randint(1, 17, (1,), generator=generator)) :] = 0
    rows = steps(make(cls, [param], weight_decay=0.0), param, gradients)[60:].square().mean(dim=(0, 2)).sqrt()
    assert rows.max() <= 0.5
    assert rows.max() <= 3 * rows.min()


# Section 2: gradients that are not finite


@everything
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_bad_gradient_leaves_its_matrix_alone(cls, options, value):
    shares = options.get("adaptation_strength", 0.0) != 0
    left_alone(lambda params: make(cls, params, **options), value, pooled=shares)


@everything
def test_one_nan_and_clipping_makes_every_gradient_nan_and_nothing_moves(cls, options, caplog):
    """`clip_grad_norm_` multiplies all gradients by a norm that is NaN."""
    params = make_params()
    optimizer = make(cls, params, **options)
    train(optimizer, params, 2)
    before = {name: promises.copies(optimizer, param) for name, param in params.items()}
    set_grads(params, 2)
    params["head.weight"].grad[0, 0] = math.nan
    torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
    optimizer.step()
    for name, param in params.items():
        now = promises.copies(optimizer, param)
        assert all(torch.equal(now[key], value) for key, value in before[name].items()), name
    train(optimizer, params, 2, start=3)
    assert all(param.isfinite().all() for param in params.values())
    assert all(not torch.equal(before[name][""], param) for name, param in params.items())


@pytest.mark.slow
@everything
def test_nothing_waits_with_bad_gradients_either(cls, options):
    params = small_matrices(3)
    optimizer = make(cls, params, **options)
    for step in range(7):  # a look for relationships, which does wait, is at the second and the fourth
        set_grads(params, step)
        next(iter(params.values())).grad[0, 0] = math.nan if step % 2 else 1.0
        with Counter() as counter:
            optimizer.step()
    assert counter.synchronisations == []


# Section 3: what the trainer switched on


@everything
def test_autocast_changes_nothing(cls, options):
    results = []
    for enabled in (False, True):
        params = make_params()
        optimizer = make(cls, params, **options)
        for step in range(4):
            set_grads(params, step)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                optimizer.step()
        results.append(params)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
@everything
def test_tf32_changes_nothing(cls, options):
    results = []
    for switch in (None, tf32):
        params = make_params()
        optimizer = make(cls, params, **options)
        for step in range(4):
            set_grads(params, step)
            try:
                with Rounded() if switch is None else switch():
                    optimizer.step()
                assert torch.get_float32_matmul_precision() == ("highest" if switch is None else "high")
            finally:
                torch.set_float32_matmul_precision("highest")
        results.append(params)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


@pytest.mark.slow
@cases
def test_a_compiled_caller_steps_alike(cls, options):
    """A training step under torch.compile: the optimizer is left out of the graph."""
    results = []
    for compiles in (False, True):
        params = make_params(shapes={"lora_unet_a.lora_down.weight": (4, 12), "lora_unet_a.lora_up.weight": (10, 4)})
        optimizer = make(cls, params, **options)

        def step(optimizer=optimizer):
            optimizer.step()

        torch._dynamo.reset()
        run = torch.compile(step, backend="eager") if compiles else step
        for number in range(3):
            set_grads(params, number)
            run()
        results.append(params)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


# The rest of the contract


@pytest.mark.slow
@everything
@promises.dtypes
def test_resumes_exactly(cls, options, dtype):
    promises.resumes_exactly(partial(make, cls, **options), make_params(dtype), steps=5)


@each
def test_copies_with_a_compiled_chain(cls):
    """A compiled function cannot be pickled; that it is compiled can."""
    params = make_params()
    optimizer = make(cls, params, compile=True)
    for twin in (pickle.loads(pickle.dumps(optimizer)),):
        assert twin._compile is True
        assert twin.settings == optimizer.settings
        assert twin.get_optimization_info()["features"] == optimizer.get_optimization_info()["features"]


@each
def test_the_step_of_a_parameter_is_true_at_any_time(cls):
    params = make_params()
    optimizer = make(cls, params)
    for step in range(1, 4):
        set_grads(params, step)
        params["head.bias"].grad = None
        params["head.weight"].grad[0, 0] = math.nan if step == 2 else 1.0
        optimizer.step()
        assert int(optimizer.state[params["lora_unet_a.lora_up.weight"]]["step"]) == step
        assert int(optimizer.state[params["head.bias"]]["step"]) == 0
        assert int(optimizer.state[params["head.weight"]]["step"]) == (1 if step < 3 else 2)


SCHEDULES = {
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-2, total_steps=20),
    "cyclic": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 1e-4, 1e-2, step_size_up=3),
}


@each
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedulers_that_move_beta1(cls, schedule):
    params = make_params()
    optimizer = make(cls, params, use_cautious=False)
    scheduler = schedule(optimizer)
    found = set()
    for step in range(6):
        set_grads(params, step)
        optimizer.step()
        scheduler.step()
        beta = optimizer.param_groups[0]["betas"][0]
        optimizer._follow_betas()
        moments = {t.name: t for bucket in optimizer.plan().buckets for t in bucket.chain if t.stage is Stage.MOMENT}
        assert {getattr(moment, moment.betas[0]) for moment in moments.values()} == {beta}
        found.add(beta)
    assert len(found) > 3
    assert all(param.isfinite().all() for param in params.values())
