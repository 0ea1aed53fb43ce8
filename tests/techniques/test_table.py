"""One table of promises over every registered technique: who registers one, has it in here."""

import dataclasses as dc
import math
from functools import partial

import pytest
import torch

from hina_kohya.core import registry
from hina_kohya.core.registry import build, techniques
from hina_kohya.core.technique import Stage, Technique
from hina_kohya.numerics.reduce import mat_mean
from tests.support import promises, table
from tests.support.chains import STATES
from tests.support.combinations import in_pairs, same
from tests.support.precision import Rounded, tf32
from tests.support.promises import left_alone
from tests.support.stepping import make_params, set_grads, train

NAMES = list(techniques())
each = pytest.mark.parametrize("name", NAMES)
states = pytest.mark.parametrize("state", STATES)


# Exact resume, in every codec and dtype


@in_pairs(("name", "state", "dtype"), same(NAMES), same(STATES), promises.DTYPES)
def test_resumes_exactly(name, state, dtype):
    promises.resumes_exactly(table.maker(name, state=state), make_params(dtype, shapes=table.SHAPES), steps=3)


# What order, neighbours and company mean


def permuted(name, reverse=False):
    """For each parameter, a function that permutes outputs, inputs and ranks, as the product allows."""
    generator = torch.Generator().manual_seed(3)
    axes = {}

    def order(length, key):
        if key not in axes:
            axes[key] = torch.randperm(length, generator=generator)
        return axes[key]

    def permute(name, x):
        module = name.split(".")[1] if name.startswith("lora") else name
        rank = {"lora_down": 0, "lora_up": 1, "lokr_w2_a": 1, "lokr_w2_b": 0}.get(module)
        for axis in range(min(x.dim(), 2)):
            key = (name.split(".")[0], "rank") if axis == rank else (name, axis)
            x = x.index_select(axis, order(x.shape[axis], key))
        return x

    return permute


@each
def test_rows_and_columns_may_be_permuted(name):
    plain, moved = make_params(torch.float64, shapes=table.SHAPES), make_params(torch.float64, shapes=table.SHAPES)
    permute = permuted(name)
    for key, param in moved.items():
        param.data = permute(key, param.data)
    optimizers = [table.maker(name)(params) for params in (plain, moved)]
    for step in range(6):
        set_grads(plain, step)
        for key, param in moved.items():
            param.grad = permute(key, plain[key].grad)
        for optimizer in optimizers:
            optimizer.step()
    for key in plain:
        torch.testing.assert_close(permute(key, plain[key].detach()), moved[key].detach(), rtol=1e-9, atol=1e-11)


@each
def test_alone_as_among_others(name):
    """But for what a technique reads of others: its partner, and where importance is shared out."""
    if techniques()[name].pools:
        pytest.skip("compares the matrices of a group")
    for module in ("lora_unet_a.", "lora_unet_k.", "head.weight"):
        alone = {key: shape for key, shape in table.SHAPES.items() if key.startswith(module)}
        results = []
        for shapes in (table.SHAPES, alone):
            params = make_params(torch.float64, shapes=table.SHAPES)
            optimizer = table.maker(name)({key: params[key] for key in shapes})
            train(optimizer, params, 5)
            results.append([params[key].detach() for key in alone])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@each
def test_chunks_change_no_bit(name, monkeypatch):
    promises.chunks_change_no_bit(monkeypatch, table.maker(name, state="8bit"), table.SHAPES)


# What has no gradient


def dropped(step, key, grad):
    """Some rows and columns are without a gradient in some steps, and a whole matrix in one."""
    index = sum(map(ord, key)) + step
    grad = grad.clone()
    if grad.dim() > 1 and index % 3 == 0:
        grad[index % grad.shape[0]] = 0
    if grad.dim() > 1 and index % 4 == 0:
        grad[:, index % grad.shape[1]] = 0
    return grad * (index % 7 != 6)


def dead_lines_change_nothing(make, fill, steps=12):
    """Rows and columns that never have a gradient, of zeros or of numbers, leave all other entries' steps alone."""
    small = make_params(torch.float64, shapes=table.SHAPES)
    large = {}
    for key, param in small.items():
        shape = [size + more for size, more in zip(param.shape, table.MARGINS[key], strict=True)]
        wide = torch.full(shape, fill, dtype=torch.float64)
        wide[tuple(map(slice, param.shape))] = param.data
        large[key] = torch.nn.Parameter(wide)
    optimizers = make(small), make(large)
    for step in range(steps):
        set_grads(small, step)
        for key, param in small.items():
            param.grad = dropped(step, key, param.grad)
            wide = torch.zeros_like(large[key])
            wide[tuple(map(slice, param.shape))] = param.grad
            large[key].grad = wide
        for optimizer in optimizers:
            optimizer.step()
    for key, param in small.items():
        live = large[key][tuple(map(slice, param.shape))]
        torch.testing.assert_close(live, param, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


@each
@pytest.mark.parametrize("fill", [0.0, 0.3], ids=["zeros", "numbers"])
def test_dead_rows_and_columns_change_nothing(name, fill):
    if fill and name in table.READS_PARAMETERS:
        pytest.skip("its mathematics is about the parameter itself")
    if name in table.GOES_BY_SIDES:
        pytest.skip("its step has the size that Muon's has for a W of these sides")
    dead_lines_change_nothing(table.maker(name), fill)


@each
@states
def test_bears_zeros(name, state):
    promises.bears_zeros(table.maker(name, state=state))


# Gradients that are not finite


@in_pairs(("name", "state", "value"), same(NAMES), same(STATES), same([math.nan, math.inf, 1e30]))
def test_a_gradient_that_is_not_finite_leaves_its_matrix_alone(name, state, value):
    left_alone(table.maker(name, state=state), value, pooled=bool(techniques()[name].pools))


@pytest.mark.slow
def test_after_a_skipped_first_step_the_second_is_a_first_one():
    """Bias corrections, ADOPT's first call and EMAs begin with the first gradient that counts."""
    for name in NAMES:
        shapes = {"head.weight": (7, 5), "other.weight": (6, 4)}
        params, later = make_params(shapes=shapes), make_params(shapes=shapes)
        optimizer, second = table.maker(name)(params), table.maker(name)(later)
        for param in later.values():
            param.grad = torch.full_like(param, math.nan)
        second.step()
        for step in range(3):
            for each_params, each_optimizer in ((params, optimizer), (later, second)):
                set_grads(each_params, step)
                each_optimizer.step()
        assert all(torch.equal(params[key], later[key]) for key in shapes), name
        assert [int(entry["step"]) for entry in second.state.values()] == [3, 3]


# The price


@each
def test_launches_go_with_shapes_and_nothing_waits(name):
    def modules(count):
        shapes = {}
        for i in range(count):
            shapes |= {key.replace("lora_unet_", f"lora_unet_{i}"): shape for key, shape in table.SHAPES.items()
                       if key.startswith("lora_unet_")}  # fmt: skip
        return make_params(shapes=shapes)

    promises.operations_go_with_shapes(table.maker(name, state="8bit"), modules, sizes=(2, 4))


# Whatever the trainer switched on


def steps_of(name, around):
    params = make_params(shapes=table.SHAPES)
    optimizer = table.maker(name, state="8bit")(params)
    for step in range(4):
        set_grads(params, step)
        with around():
            optimizer.step()
    return params


def tf32_by_backend():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    return Rounded()


@pytest.fixture
def _precision():
    yield
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


SWITCHES = {
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "tf32": tf32,
    "tf32 by backend": tf32_by_backend,
}


@each
@pytest.mark.usefixtures("_precision")
@pytest.mark.parametrize("around", SWITCHES.values(), ids=SWITCHES.keys())
def test_the_step_is_the_same_whatever_is_on_around_it(name, around):
    if around is tf32_by_backend and not hasattr(torch._C, "_get_fp32_precision_getter"):
        pytest.skip("torch < 2.9")
    plain, other = steps_of(name, lambda: torch.autocast("cpu", enabled=False)), steps_of(name, around)
    assert all(torch.equal(plain[key], other[key]) for key in plain)


# How far a step may go


def one_row(step, shape, g):
    g[1:] = 0
    return g


def a_row_a_step(step, shape, g):
    kept = torch.zeros_like(g)
    row = (7 * step) % shape[0]
    kept[row] = g[row]
    return kept


def spike(step, shape, g):
    if step == 30:
        g.view(-1)[g.numel() // 2] = 1e4
    return g


def turn(step, shape, g):
    return torch.ones_like(g) * (1 if step < 30 else -1) + 0.1 * g


def fall(step, shape, g):
    return g * (1 if step < 20 else 1e-4)


def wake(step, shape, g):
    if step < 30:
        g[shape[0] // 2 :] = 0
    return g


STREAMS = [one_row, a_row_a_step, spike, turn, fall, wake]


@each
@pytest.mark.parametrize("stream", STREAMS)
def test_no_entry_moves_further_than_the_chain_reaches(name, stream):
    if name in table.UNBOUNDED:
        pytest.skip(table.UNBOUNDED[name])
    shapes = {
        "lora_unet_a.lora_down.weight": (4, 40),
        "lora_unet_a.lora_up.weight": (96, 4),
        "lora_unet_k.lokr_w1": (4, 4),
        "lora_unet_k.lokr_w2": (12, 10),
        "rows.weight": (256, 8),
        "vector": (64,),
    }
    params = make_params(shapes=shapes)
    optimizer = table.optimizer(params, [*table.chain(name), *mask(name)], lr=1e-3, weight_decay=0.0)
    generator, furthest = torch.Generator().manual_seed(0), 0.0
    for step in range(40):
        before = {key: param.detach().clone() for key, param in params.items()}
        for key, param in params.items():
            param.grad = stream(step, shapes[key], torch.randn(param.shape, generator=generator))
        optimizer.step()
        furthest = max(furthest, *((params[key] - before[key]).abs().max().item() for key in params))
    assert furthest / 1e-3 <= table.limit(name, 40) * 1.001


def mask(name):
    """Cautious can put the step of many entries into one; it is left out where another mask is."""
    return [] if techniques()[name].stage is Stage.UPDATE else [build("cautious")]


# Arguments


def bounds():
    found = []
    for name, technique in techniques().items():
        for field in dc.fields(technique):
            if interval := field.metadata.get("interval"):
                low, high = (float(end) for end in interval.text[1:-1].split(","))
                found += [(name, field.name, low - 1), (name, field.name, math.nan)]
                found += [(name, field.name, high + 1)] if high < math.inf else []
    return found


@pytest.mark.parametrize(("name", "option", "value"), bounds())
def test_values_out_of_bounds_are_refused(name, option, value):
    with pytest.raises(ValueError, match=rf"{name}.{option} = "):
        build(name, **{option: value})


@each
def test_it_acts(name):
    results = []
    for chosen in (table.chain(name), table.without(name)):
        params = make_params(shapes=table.SHAPES)
        train(table.optimizer(params, chosen), params, 6)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    assert not torch.allclose(*results, rtol=1e-4, atol=1e-6)


# Who registers one, has it in here


@dc.dataclass(frozen=True)
class Centred(Technique):
    """Takes the mean over all entries away: dead rows get an update, and live ones another."""

    name, stage = "centred", Stage.GRADIENT

    def apply(self, s, state):
        return s.but(grad=s.grad - mat_mean(s.grad))


@dc.dataclass(frozen=True)
class Halved(Technique):
    """Harmless."""

    name, stage = "halved", Stage.UPDATE

    def apply(self, s, state):
        return s.but(update=s.update / 2)


@dc.dataclass(frozen=True)
class Wide(Technique):
    """Makes the update as large as it likes, and says that it may."""

    name, stage, stretches = "wide", Stage.UPDATE, True

    def apply(self, s, state):
        return s.but(update=s.update * 1e6)


@pytest.mark.slow
def test_a_new_technique_is_in_the_table_when_it_is_registered(monkeypatch):
    monkeypatch.setattr(registry, "_TECHNIQUES", dict(registry._TECHNIQUES))
    for technique in (Centred, Halved, Wide):
        registry.register(technique)
    assert {"centred", "halved", "wide"} <= set(techniques())
    dead_lines_change_nothing(table.maker("halved"), 0.3)
    left_alone(table.maker("halved", state="8bit"), math.nan)
    promises.resumes_exactly(table.maker("halved"), make_params(shapes=table.SHAPES), steps=2)
    test_it_acts("halved")
    test_no_entry_moves_further_than_the_chain_reaches("wide", spike)
    with pytest.raises(AssertionError, match="not close"):
        dead_lines_change_nothing(table.maker("centred"), 0.0)
