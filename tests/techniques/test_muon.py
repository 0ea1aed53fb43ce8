"""Muon through the real optimizer: against its oracle, who gets it, and what its step is worth beside Adam's."""

from functools import partial

import numpy as np
import pytest
import torch

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from hina_kohya.optim import report
from tests.oracles import adamw, muon, normuon, tam
from tests.support import promises
from tests.support.chains import STATES, chains_of
from tests.support.oracle_runs import sparse
from tests.support.stepping import SHAPES as EVERY_SHAPE
from tests.support.stepping import make_params, set_grads, train

STEPS, LR, DECAY = 30, 1e-2, 0.1
SHAPES = {
    "lora_unet_a.lora_down.weight": (4, 12),
    "lora_unet_b.lora_down.weight": (4, 12),
    "lora_unet_a.lora_up.weight": (10, 4),
    "lora_unet_k.lokr_w1": (4, 4),
    "lora_unet_c.lora_down.weight": (4, 3, 3, 3),
    "head.weight": (7, 5),
}


def rate(step):
    return LR / (1 + step % 3)


def optimizer(params, *others, state="fp32", decay=0.0, lr=LR, **options):
    chain = [build("muon", **options), build("weight_decay"), *(build(name) for name in others)]
    return HinaOptimizer(params.items(), chain, lr=lr, weight_decay=decay, state=state, decay_roles="all")


def run(params, opt, gradients):
    for step, by_name in enumerate(gradients):
        opt.param_groups[0]["lr"] = rate(step)
        for name, param in params.items():
            param.grad = torch.from_numpy(by_name[name].copy())
        opt.step()
    return {name: param.detach().numpy() for name, param in params.items()}


def noise(shapes, steps=STEPS, seed=0):
    rng = np.random.default_rng(seed)
    return [{name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(steps)]


def values(params):
    return {name: param.detach().numpy().copy() for name, param in params.items()}


OPTIONS = [{}, {"nesterov": False}, {"beta": 0.7}, {"rms": 1.5}, {"rounds": 2}]
NORMUON = {"normuon": True}
NORMUON_OPTIONS = [NORMUON, {**NORMUON, "beta2": 0.5}, {**NORMUON, "eps": 0.1}, {**NORMUON, "rms": 1.5}]
states = pytest.mark.parametrize("state", STATES)


def oracle_of(options):
    rest = {name: value for name, value in options.items() if name != "normuon"}
    return normuon.NorMuon(by_row=False, **rest) if "normuon" in options else muon.Muon(**rest)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("options", [*OPTIONS, *NORMUON_OPTIONS], ids=str)
def test_against_the_oracle(options, holes):
    params = make_params(torch.float64, shapes=SHAPES)
    initial, gradients = values(params), noise(SHAPES)
    gradients = sparse(gradients) if holes else gradients
    final = run(params, optimizer(params, decay=DECAY, **options), gradients)
    for name, p in initial.items():
        oracle = oracle_of({**options, "weight_decay": DECAY})
        for step, by_name in enumerate(gradients):
            p = oracle.step(p, by_name[name], rate(step))
        np.testing.assert_allclose(final[name], p, rtol=0, atol=1e-11)


@pytest.mark.parametrize("orthogonal", [muon.svd, muon.polar])
def test_against_decompositions(orthogonal):
    """The iteration by SVD; and the polar factor, from which each step may be off by the band, 0.32 of its norm."""
    params = make_params(torch.float64, shapes=SHAPES)
    initial, gradients = values(params), noise(SHAPES, 8)
    final = run(params, optimizer(params), gradients)
    for name, p in initial.items():
        oracle, moved = muon.Muon(orthogonal=orthogonal), 0.0
        for step, by_name in enumerate(gradients):
            after = oracle.step(p, by_name[name], rate(step))
            p, moved = after, moved + np.linalg.norm(after - p)
        assert np.linalg.norm(final[name] - p) <= (1e-10 if orthogonal is muon.svd else 0.32 * moved)


def test_torque_damps_what_enters_the_momentum():
    params = make_params(torch.float64, shapes=SHAPES)
    initial, gradients = values(params), noise(SHAPES)
    final = run(params, optimizer(params, "tam"), gradients)
    for name, p in initial.items():
        oracle = tam.TAM(moment=muon.Muon(), gamma=0.9)
        for step, by_name in enumerate(gradients):
            p = oracle.step(p.reshape(len(p), -1), by_name[name].reshape(len(p), -1), rate(step)).reshape(p.shape)
        np.testing.assert_allclose(final[name], p, rtol=0, atol=1e-11)


KINDS = {
    **EVERY_SHAPE,
    "lora_unet_r.lora_down.weight": (1, 12),  # rank 1
    "lora_unet_r.lora_up.weight": (10, 1),
    "lora_unet_o.oft_blocks": (3, 4, 4),
    "lora_unet_o.rescale": (10, 1),
    "lora_unet_n.w_norm": (8,),
    "lora_unet_t.lokr_t2": (4, 4, 3, 3),
}
ADAM = {
    "lora_unet_d.dora_scale", "lora_unet_d.scalar", "head.bias", "gain", "lora_unet_r.lora_down.weight",
    "lora_unet_r.lora_up.weight", "lora_unet_o.oft_blocks", "lora_unet_o.rescale", "lora_unet_n.w_norm",
}  # fmt: skip


@pytest.mark.parametrize("other", ["adam", "adopt", "adatam"])
def test_matrices_get_muon_and_the_rest_gets_the_other_moment(other):
    opt = optimizer(make_params(shapes=KINDS), other)
    for name, chain in zip(KINDS, chains_of(opt), strict=True):
        assert chain[0].name == (other if name in ADAM else "muon"), name


def test_pairs_prefer_lora_rite():
    shapes = {**SHAPES, "head.bias": (7,)}
    opt = optimizer(make_params(shapes=shapes), "adam", "lora_rite")
    moments = [chain[0].name for chain in chains_of(opt)]
    assert moments == ["lora_rite", "muon", "lora_rite", "muon", "muon", "muon", "adam"]


def test_the_rest_steps_as_without_muon():
    params = make_params(torch.float64)
    initial = values(params)
    opt, oracles = optimizer(params, "adam"), {name: adamw.AdamW() for name in ADAM & set(params)}
    expected = {name: initial[name] for name in oracles}
    for step in range(10):
        set_grads(params, step)
        for name, oracle in oracles.items():
            expected[name] = oracle.step(expected[name], params[name].grad.numpy(), LR)
        opt.step()
    for name, value in expected.items():
        np.testing.assert_allclose(params[name].detach().numpy(), value, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("basis", "options"), [*(({}, each) for each in (*OPTIONS[1:], NORMUON)),
                           *((NORMUON, each) for each in NORMUON_OPTIONS[1:])], ids=str
)  # fmt: skip
def test_every_option_changes_the_update(basis, options):
    results = []
    for chosen in (basis, options):
        params = make_params(shapes=SHAPES)
        train(optimizer(params, **chosen), params, 3)
        results.append(torch.cat([param.detach().flatten() for param in params.values()]))
    assert not torch.allclose(*results, rtol=1e-3, atol=1e-4)


def moved(chain, shape, steps, scale=1.0, lr=1e-3, **options):
    """RMS over the second half of the steps, over the learning rate, on white noise."""
    params = make_params(torch.float64, shapes={"weight": shape})
    built = [build(name, **options) for name in chain]
    opt = HinaOptimizer(params.items(), built, lr=lr, weight_decay=0.0, state="fp32")
    squares = []
    for step in range(steps):
        before = params["weight"].detach().clone()
        set_grads(params, step, scale=scale)
        opt.step()
        squares.append((params["weight"].detach() - before).square().mean().item())
    return np.sqrt(np.mean(squares[steps // 2 :])) / lr


FACTORS = [(8, 640), (640, 8), (16, 144), (8, 8), (20, 20), (2, 2)]  # r x n, m x r, convolution, LoKr


@pytest.mark.parametrize("shape", FACTORS, ids=str)
def test_the_step_is_as_large_as_adams_for_every_role(shape):
    ours, adams = moved(["muon"], shape, 80), moved(["adam"], shape, 80)
    low, high = muon.BAND
    assert 0.2 * low <= ours <= 0.2 * high
    assert 0.65 <= ours / adams <= 1.1


@pytest.mark.parametrize("shape", FACTORS, ids=str)
def test_with_normuon_the_step_has_its_size_exactly(shape):
    assert moved(["muon"], shape, 20, normuon=True) == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("options", [{}, NORMUON], ids=str)
@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1e9, 1e120])
def test_the_size_of_gradients_does_not_matter(scale, options):
    expected = moved(["muon"], (8, 24), 5, **options)
    assert moved(["muon"], (8, 24), 5, scale, **options) == pytest.approx(expected, rel=1e-9)


def test_the_basis_does_not_matter():
    """(R A, B) with orthogonal R: A's step turns with it, as Adam's would not."""
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    results = []
    for basis in (torch.eye(4, dtype=torch.float64), turn):
        params = make_params(torch.float64, shapes={"lora_unet_a.lora_down.weight": (4, 12)})
        (down,) = params.values()
        down.data.copy_(basis @ down.data)
        opt = optimizer(params, decay=DECAY)
        for step in range(10):
            set_grads(params, step)
            down.grad = basis @ down.grad
            opt.step()
        results.append(basis.mT @ down.detach())
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)


def test_one_slot():
    params = make_params(shapes=dict.fromkeys(("a.weight", "b.weight"), (16, 128)))
    opt = optimizer(params, state="8bit")
    train(opt, params, 2)
    assert {key for key in opt.state[params["a.weight"]] if "." in key} == {"muon.exp_avg", "muon.exp_avg.scale"}
    assert report.memory(opt)["bytes_per_parameter"] <= 1.04


@pytest.mark.parametrize("state", ["bf16", "8bit"])
def test_small_state_steps_alike(state):
    finals = []
    for codec in ("fp32", state):
        params = make_params(shapes={"weight": (8, 128)})
        start = params["weight"].detach().clone()
        train(optimizer(params, state=codec), params, 20)
        finals.append(params["weight"].detach() - start)
    cosine = torch.nn.functional.cosine_similarity(*(final.flatten() for final in finals), dim=0)
    assert cosine >= (0.9999 if state == "bf16" else 0.999)


@pytest.mark.parametrize("state", ["fp32", "8bit"])
def test_resume_is_exact(state):
    straight, resumed = make_params(), make_params()
    opt = optimizer(straight, "adam", state=state)
    train(opt, straight, 6)
    first = optimizer(resumed, "adam", state=state)
    train(first, resumed, 3)
    second = optimizer(resumed, "adam", state=state)
    second.load_state_dict(first.state_dict())
    train(second, resumed, 3, start=3)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_zero_and_bad_gradients_stay_where_they_are():
    shapes = {f"lora_unet_{i}.lora_down.weight": (4, 12) for i in range(4)}
    results = []
    for bad in (False, True):
        params = make_params(shapes=shapes)
        opt = optimizer(params)
        first, second, *_ = params.values()
        start = second.detach().clone()
        for step in range(3):
            set_grads(params, step)
            second.grad.zero_()
            if bad:
                first.grad[1, 1] = float("nan")
            opt.step()
        assert torch.equal(second, start)
        results.append([param.detach() for param in params.values()])
    assert results[1][0].isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(results[0][1:], results[1][1:], strict=True))


def modules(count):
    shapes = {}
    for i in range(count):
        shapes |= {f"lora_unet_{i}.lora_down.weight": (4, 24), f"lora_unet_{i}.lora_up.weight": (24, 4)}
    return make_params(shapes=shapes)


def test_neither_synchronises_nor_grows_with_the_number_of_matrices():
    promises.operations_go_with_shapes(partial(optimizer, state="8bit"), modules, sizes=(10, 40))


# NorMuon's average, too


normuon_of = partial(optimizer, **NORMUON)


@promises.dtypes
@states
def test_normuon_resumes_exactly(state, dtype):
    promises.resumes_exactly(partial(normuon_of, state=state), make_params(dtype, shapes=SHAPES))


@states
@pytest.mark.parametrize("target", STATES)
def test_another_codec_takes_over_the_average(state, target):
    mine, theirs = promises.read_by_another_codec(normuon_of, state, target, "muon", "neurons")
    assert mine.shape == (1, 1, 40)
    torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0)


@states
def test_normuon_of_bad_gradients_and_zeros(state):
    make = partial(normuon_of, state=state)
    promises.spares_neighbours(make, {2: torch.nan}, SHAPES)
    promises.bears_zeros(partial(optimizer_with_adam, state=state))


def optimizer_with_adam(params, **options):
    return optimizer(params, "adam", **NORMUON, **options)


def test_normuon_keeps_to_its_matrix(monkeypatch):
    promises.rows_and_columns_may_be_permuted(normuon_of, rtol=1e-12, atol=1e-13)
    promises.chunks_change_no_bit(monkeypatch, normuon_of, SHAPES)
    promises.operations_go_with_shapes(partial(normuon_of, state="8bit"), modules, sizes=(10, 40))
    assert promises.bytes_a_parameter_at_rank_16(partial(normuon_of, state="8bit")) <= 1.1
