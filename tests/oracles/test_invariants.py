"""What the papers (and TECHNIQUES.md section 17) claim of each technique, asked of the oracles alone."""

import numpy as np
import pytest

from . import agr, allora, kronecker, stochastic_rounding
from .adamw import AdamW
from .adopt import ADOPT
from .cautious import Cautious, cautious
from .cautious_weight_decay import CautiousWeightDecay, decay
from .dynamic_weight_decay import DynamicWeightDecay, weight_decay_at
from .grams import grams
from .lora_rite import LoRARite
from .orthograd import orthograd
from .spd import SPD, project
from .tam import TAM, TAMSGD, AdaTAM, Torque


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_agr_shrinks_by_shares_that_sum_to_one(rng):
    g = rng.standard_normal((7, 5))
    out = agr.agr(g)
    assert agr.alpha(g).sum() == pytest.approx(1, abs=1e-15)
    assert (np.sign(out) == np.sign(g)).all()
    assert (np.abs(out) < np.abs(g)).all()
    assert agr.agr(np.array([3.0, 1.0])) == pytest.approx([3 * 0.25, 1 * 0.75])


def test_agr_leaves_scalars_and_zeros_alone():
    assert agr.agr(np.array([2.5])) == 2.5
    assert (agr.agr(np.zeros((3, 2))) == 0).all()


def test_agr_step_is_adamw_on_the_shrunk_gradient(rng):
    p, oracle, plain = rng.standard_normal((4, 4)), agr.AGR(), AdamW()
    q = p
    for g in rng.standard_normal((20, 4, 4)):
        p, q = oracle.step(p, g, 1e-2), plain.step(q, g * (1 - np.abs(g) / np.abs(g).sum()), 1e-2)
    np.testing.assert_allclose(p, q, rtol=1e-13)


def test_orthograd_is_orthogonal_and_keeps_the_norm(rng):
    p, g = rng.standard_normal((2, 7, 5))
    out = orthograd(p, g)
    assert abs(np.sum(p * out)) <= 1e-14 * np.linalg.norm(p) * np.linalg.norm(g)
    assert np.linalg.norm(out) == pytest.approx(np.linalg.norm(g), rel=1e-14)
    assert np.sum(g * out) > 0


def test_orthograd_of_zero_parallel_and_scalar(rng):
    p, g = rng.standard_normal((2, 7, 5))
    np.testing.assert_array_equal(orthograd(np.zeros_like(p), g), g)
    for c in rng.standard_normal(20):  # c p is parallel only up to rounding
        np.testing.assert_array_equal(orthograd(p, c * p), 0)
    np.testing.assert_array_equal(orthograd(np.ones((1, 1)), np.ones((1, 1))), 1)


def test_adopt_first_call_changes_nothing_and_a_zero_first_gradient_is_tame(rng):
    p, g = rng.standard_normal((2, 7, 5))
    oracle = ADOPT(weight_decay=0.1)
    np.testing.assert_array_equal(oracle.step(p, 0 * g, 0.1), p)
    oracle.weight_decay = 0.0
    moved = oracle.step(p, g, 0.1) - p
    assert np.abs(moved).max() == pytest.approx(0.1 * (1 - 0.9))


def test_adopt_second_moment_enters_one_step_late(rng):
    p, g = rng.standard_normal((2, 7, 5))
    one, two = ADOPT(), ADOPT()
    for oracle in (one, two):
        oracle.step(p, g, 0.1)
    np.testing.assert_allclose(one.step(p, np.full_like(g, 50.0), 0.1), two.step(p, np.full_like(g, 500.0), 0.1))
    assert not np.allclose(one.v, two.v)


def test_cautious_agrees_with_the_gradient(rng):
    u, g = rng.standard_normal((2, 7, 5))
    out, kept = cautious(u, g), u * g > 0
    assert (out[~kept] == 0).all()
    np.testing.assert_allclose(out[kept], u[kept] / kept.mean())
    np.testing.assert_array_equal(cautious(g, g), g)
    np.testing.assert_array_equal(cautious(-g, g), 0)


def test_cautious_amplifies_at_most_a_thousand_times():
    u, g = np.ones(5000), np.full(5000, -1.0)
    g[0] = 1
    assert cautious(u, g).max() == 1000


def test_grams_has_the_sign_of_the_gradient_and_is_idempotent(rng):
    u, g = rng.standard_normal((2, 7, 5))
    g[0] = 0
    out = grams(u, g)
    np.testing.assert_array_equal(np.sign(out), np.sign(g))
    np.testing.assert_array_equal(np.abs(out)[1:], np.abs(u)[1:])
    np.testing.assert_array_equal(grams(out, g), out)


def test_cautious_decay_and_its_complement_are_the_full_decay(rng):
    p, u = rng.standard_normal((2, 7, 5))
    taken = decay(p, u, 0.1, 0.5)
    assert (taken[u * p < 0] == 0).all()
    np.testing.assert_allclose(taken + decay(p, -u, 0.1, 0.5), 0.1 * 0.5 * p)
    np.testing.assert_allclose(decay(p, 0 * u, 0.1, 0.5), 0.1 * 0.5 * p)


def test_without_decay_all_wrappers_are_adamw_where_their_rule_is_idle(rng):
    p, g = rng.standard_normal((2, 7, 5))
    expected = AdamW().step(p, g, 0.1)
    for oracle in (Cautious(), CautiousWeightDecay(), DynamicWeightDecay(0.0), SPD(strength=0.0)):
        np.testing.assert_allclose(oracle.step(p, g, 0.1), expected, rtol=1e-15)


def test_tam_torque_limits(rng):
    g = rng.standard_normal((7, 5))
    for sign, limit in ((1, 1.0), (-1, 0.0)):
        torque = Torque(gamma=0.5, eps=0.0)
        d = [torque(sign * g, g) for _ in range(60)]
        assert d[-1] == pytest.approx(limit, abs=1e-12)
    assert Torque(eps=0.25)(0.0 * g, g) == 0.75
    assert Torque(gamma=0.9, eps=0.0)(-g, g) == pytest.approx(0.5 - 0.05)
    assert Torque(gamma=0.0, eps=0.0)(g, 1e6 * g) == pytest.approx(1)


def test_tam_composed_is_adamw_at_d_one_and_half_of_it_at_first(rng):
    p, g = rng.standard_normal((2, 7, 5))
    one = TAM(gamma=1.0, eps=0.5, weight_decay=0.1)  # s stays 0, so eps + d = 1
    plain, q = AdamW(weight_decay=0.1), p
    for noise in rng.standard_normal((50, 7, 5)):
        p, q = one.step(p, g + noise, 1e-2), plain.step(q, g + noise, 1e-2)
    np.testing.assert_allclose(p, q, rtol=1e-12)
    first = TAM(eps=0.0).step(np.zeros_like(g), g, 1.0)
    np.testing.assert_allclose(first, 0.5 * AdamW().step(np.zeros_like(g), g, 1.0))


def test_tam_reads_the_old_momentum_and_damps_only_the_first_moment(rng):
    g = rng.standard_normal((7, 5))
    tam = TAM(gamma=0.0, eps=0.0)
    tam.step(g, g, 0.1)
    tam.step(g, -g, 0.1)  # exactly opposed: d = 0
    np.testing.assert_allclose(tam.moment.m, 0.9 * 0.1 * 0.5 * g)
    np.testing.assert_allclose(tam.moment.v, (0.999 * 0.001 + 0.001) * g**2)


def test_tam_under_adopt_measures_in_the_space_of_n(rng):
    """Elementwise rescaling of g changes cos(m, g) but not cos(m, n)."""
    gs, scale = rng.standard_normal((6, 7, 5)), 10 ** rng.uniform(-3, 3, (7, 5))
    one, two = (TAM(ADOPT(eps=0.0)) for _ in range(2))
    for g in gs:
        one.step(g, g, 0.1)
        two.step(g, g * scale, 0.1)
    assert one.torque.s == pytest.approx(two.torque.s, rel=1e-12)
    assert abs(one.torque.s) > 1e-3


def test_tam_paper_form_overshoots_adam_as_measured(rng):
    """TECHNIQUES.md section 7: |u| is 15.8 at step 1, 45.9 at 10, 10.3 in the limit."""
    g, paper, sizes = np.ones((2, 2)), AdaTAM(), []
    for _ in range(20000):
        sizes.append(-paper.step(np.zeros((2, 2)), g, 1.0)[0, 0])
    assert sizes[0] == pytest.approx(0.5 / np.sqrt(0.001), rel=1e-6)
    assert sizes[9] == pytest.approx(45.9, abs=0.1)
    assert sizes[-1] == pytest.approx(10.0, rel=1e-3)
    p = TAMSGD().step(np.zeros((2, 2)), g, 1.0)
    np.testing.assert_allclose(p, -(0.5 + 1e-8))


def test_allora_factor_is_eta_at_zero_and_falls_with_the_row(rng):
    A, B = rng.standard_normal((3, 8)), rng.standard_normal((5, 3))
    np.testing.assert_allclose(allora.row_factor(A, 0 * B, 4.0), 4.0)
    s, norms = allora.row_factor(A, B, 4.0), np.sqrt(np.sum(((B @ A) ** 2), 1, keepdims=True))
    assert s.shape == (5, 1)
    np.testing.assert_allclose(s**-2 - 1 / 16, norms)
    gA, gB = rng.standard_normal((3, 8)), rng.standard_normal((5, 3))
    A1, B1 = allora.ALLoRA(eta=4.0).step(A, B, gA, gB, 0.1)
    np.testing.assert_allclose(A1, AdamW().step(A, gA, 0.1))
    np.testing.assert_allclose((B1 - B) / (AdamW().step(B, gB, 0.1) - B), s * np.ones((5, 3)))


def kronecker_gradients(w1, w2, G):
    """grad of <G, w1 (x) w2> by the blocks of G."""
    blocks = G.reshape(w1.shape[0], w2.shape[0], w1.shape[1], w2.shape[1])
    return np.einsum("apbq,pq->ab", blocks, w2), np.einsum("apbq,ab->pq", blocks, w1)


def kronecker_path(rng, c, steps=30, low_rank=False):
    rng = np.random.default_rng(3)
    w1, w2 = rng.standard_normal((3, 2)) * c, rng.standard_normal((4, 5)) / c
    a, b = rng.standard_normal((4, 2)) * c**2, rng.standard_normal((2, 5)) / c**3
    pair, triple = kronecker.Kronecker(scale=0.5, eps=0), kronecker.KroneckerLowRank(scale=0.5, eps=0)
    for _ in range(steps):
        if low_rank:
            w2 = a @ b
        G = rng.standard_normal((12, 10)) + np.kron(w1, w2)
        g1, g2 = kronecker_gradients(w1, w2, G)
        if low_rank:
            w1, a, b = triple.step((w1, a, b), (g1, g2 @ b.T, a.T @ g2), 1e-2)
        else:
            w1, w2 = pair.step(w1, w2, g1, g2, 1e-2)
    return np.kron(w1, a @ b if low_rank else w2)


@pytest.mark.parametrize("low_rank", [False, True])
def test_kronecker_path_does_not_see_the_gauge(rng, low_rank):
    W, W7 = kronecker_path(rng, 1.0, low_rank=low_rank), kronecker_path(rng, 7.0, low_rank=low_rank)
    assert np.abs(W - W7).max() / np.abs(W).max() <= 1e-12


def test_kronecker_factors_each_move_w_by_lr(rng):
    w1, w2, a, b = (rng.standard_normal(s) for s in ((8, 8), (16, 12), (64, 4), (4, 48)))
    signs = lambda x: np.sign(rng.standard_normal(x.shape))
    k1, k2 = kronecker.full(w1, w2, scale=0.5)
    assert kronecker.rms(0.5 * np.kron(k1 * signs(w1), w2)) == pytest.approx(1, rel=1e-12)
    assert kronecker.rms(0.5 * np.kron(w1, k2 * signs(w2))) == pytest.approx(1, rel=1e-12)
    k1, ka, kb = kronecker.low_rank(w1, a, b, scale=0.5)
    assert kronecker.rms(0.5 * np.kron(k1 * signs(w1), a @ b)) == pytest.approx(1, rel=1e-12)
    assert kronecker.rms(0.5 * np.kron(w1, (ka * signs(a)) @ b)) == pytest.approx(1, rel=0.2)
    assert kronecker.rms(0.5 * np.kron(w1, a @ (kb * signs(b)))) == pytest.approx(1, rel=0.2)


def test_kronecker_floor_bounds_the_rate(rng):
    w1 = rng.standard_normal((3, 2))
    assert kronecker.full(w1, np.zeros((4, 5)), floor=1e-2)[0] == pytest.approx(100)


def test_dynamic_decay_starts_after_t_and_reaches_the_floor():
    at = lambda t: weight_decay_at(t, 0.5, transition_steps=100, factor=0.7, min_ratio=0.1)
    assert at(1) == at(100) == 0.5
    assert at(101) == pytest.approx(0.5 * 0.7**0.01)
    assert at(200) == pytest.approx(0.5 * 0.7)
    assert at(500) == pytest.approx(0.5 * 0.7**4)  # beyond the fork's cap of 2
    assert at(100_000) == pytest.approx(0.5 * 0.1)


def test_dynamic_decay_counts_the_first_call_as_one(rng):
    p, g = rng.standard_normal((2, 7, 5))
    oracle, plain = DynamicWeightDecay(0.5, transition_steps=2, factor=0.5, min_ratio=0.3), AdamW()
    for decay_now in (0.5, 0.5, 0.5 * 0.5**0.5, 0.25, 0.5 * 0.5**1.5, 0.15, 0.15):
        u = plain.direction(g)
        np.testing.assert_allclose(oracle.step(p, g, 0.1), p - 0.1 * decay_now * p - 0.1 * u, rtol=1e-14)


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("anchored", [False, True])
def test_spd_exact_identity(rng, strength, anchored):
    fired = 0
    for _ in range(200):
        p, p_tilde, g, a = rng.standard_normal((4, 7, 5))
        a = a if anchored else 0.0
        out = project(p_tilde, p, g, a, strength)
        now, before = np.linalg.norm(p_tilde - a), np.linalg.norm(p - a)
        if np.sum(g * (p - a)) > 0 and now > before:
            fired += 1
            assert np.linalg.norm(out - a) == pytest.approx(now - strength * (now - before), rel=1e-14)
        else:
            np.testing.assert_allclose(out, p_tilde, rtol=1e-15)
    assert 20 < fired < 100


def test_spd_never_passes_the_anchor(rng):
    p, g = rng.standard_normal((2, 7, 5))
    g *= np.sign(np.sum(g * p))
    np.testing.assert_array_equal(project(10 * p, p, g, 0.0, 2.0), 0)  # r = 0.9, lambda r = 1.8
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(project(0 * p, p, g, 0.0, 1.0), 0)


def test_spd_step_projects_on_the_old_radius(rng):
    p = rng.standard_normal((7, 5))
    oracle = SPD(strength=1.0)
    oracle.step(p, -p, 0.1)  # momentum that grows p
    out = oracle.step(p, 0.1 * p, 0.1)  # the gradient now asks to shrink
    assert np.linalg.norm(out) == pytest.approx(np.linalg.norm(p), rel=1e-14)


def rite_path(X, steps=30, zero=False):
    rng = np.random.default_rng(5)
    A, B, target = rng.standard_normal((3, 8)), rng.standard_normal((6, 3)) * (not zero), rng.standard_normal((6, 8))
    A, B = X @ A, B @ np.linalg.inv(X)
    oracle = LoRARite()
    for _ in range(steps):
        G = B @ A - target + 0.1 * rng.standard_normal((6, 8))
        A, B = oracle.step(A, B, B.T @ G, G @ A.T, 1e-2)
    return B @ A


@pytest.mark.parametrize("zero", [False, True])
def test_lora_rite_path_does_not_see_the_gauge(rng, zero):
    W, X = rite_path(np.eye(3), zero=zero), 5 * rng.standard_normal((3, 3))
    assert np.isfinite(W).all()
    assert np.abs(W - rite_path(X, zero=zero)).max() / np.abs(W).max() <= 1e-10


def test_lora_rite_survives_a_gauge_change_between_steps(rng):
    def path(X):
        r = np.random.default_rng(6)
        A, B, oracle = r.standard_normal((3, 8)), r.standard_normal((6, 3)), LoRARite()
        for t in range(20):
            if t == 10:
                A, B = X @ A, B @ np.linalg.inv(X)
            G = B @ A - 1 + 0.1 * r.standard_normal((6, 8))
            A, B = oracle.step(A, B, B.T @ G, G @ A.T, 1e-2)
        return B @ A

    W = path(np.eye(3))
    assert np.abs(W - path(rng.standard_normal((3, 3)))).max() / np.abs(W).max() <= 1e-10


def test_lora_rite_is_jacobi(rng):
    """B's update must not depend on what happens to A in the same step."""
    A, B, gA, gB, other = (rng.standard_normal(s) for s in ((3, 8), (6, 3), (3, 8), (6, 3), (3, 8)))
    np.testing.assert_array_equal(LoRARite().step(A, B, gA, gB, 0.1)[1], LoRARite().step(A, B, other, gB, 0.1)[1])


def test_stochastic_rounding_is_unbiased_and_exact_on_bf16(rng):
    for x in (1.003, -1.003, 3.3e-5):
        x32 = np.full(200_000, x, np.float32)
        out = stochastic_rounding.stochastic_round(x32, rng.integers(0, 2**16, x32.shape))
        lower, upper = np.unique(np.abs(out))
        assert lower < abs(x) < upper
        assert out.mean(dtype=np.float64) == pytest.approx(float(x32[0]), abs=5 * (upper - lower) / np.sqrt(x32.size))
    exact = np.array([1.0, -0.5, 0.0, np.inf, -np.inf, np.nan, 2.0**-130], np.float32)
    np.testing.assert_array_equal(stochastic_rounding.stochastic_round(exact, np.full(7, 65535)), exact)


def test_stochastic_rounding_keeps_every_nan():
    nan = np.array([0x7FFFFFFF, 0x7F800001], np.uint32).view(np.float32)
    assert np.isnan(stochastic_rounding.stochastic_round(nan, np.full(2, 65535))).all()
