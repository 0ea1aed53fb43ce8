"""The composed step is each oracle when one technique is on, and the written order when several are."""

import numpy as np
import pytest

from . import agr, cautious, orthograd, spd
from .adamw import AdamW
from .adopt import ADOPT
from .allora import ALLoRA
from .cautious import Cautious
from .cautious_weight_decay import CautiousWeightDecay
from .compose import ComposedPair, ComposedStep
from .dynamic_weight_decay import DynamicWeightDecay, weight_decay_at
from .grams import Grams
from .kronecker import Kronecker
from .loraplus import LoRAPlus
from .tam import TAM

SHAPE = (7, 5)
ANCHOR = np.random.default_rng(9).standard_normal(SHAPE)
SCHEDULE = {"transition_steps": 5, "factor": 0.5, "min_ratio": 0.1}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


ALONE = {
    "adamw": (ComposedStep(weight_decay=0.1), AdamW(weight_decay=0.1)),
    "adopt": (ComposedStep(moment="adopt", weight_decay=0.1), ADOPT(weight_decay=0.1)),
    "options": (ComposedStep(moment_options={"betas": (0.8, 0.9), "eps": 0.1}), AdamW((0.8, 0.9), 0.1)),
    "agr": (ComposedStep(agr=True), agr.AGR()),
    "orthograd": (ComposedStep(orthograd=True), orthograd.OrthoGrad(AdamW())),
    "orthograd and decay": (ComposedStep(orthograd=True, weight_decay=9), orthograd.OrthoGrad(AdamW(weight_decay=9))),
    "tam": (ComposedStep(tam={}), TAM()),
    "tam on adopt": (ComposedStep(tam={"gamma": 0.5}, moment="adopt"), TAM(ADOPT(), gamma=0.5)),
    "cautious": (ComposedStep(sign="cautious", weight_decay=0.1), Cautious(weight_decay=0.1)),
    "cautious on adopt": (ComposedStep(sign="cautious", floor=0.9, moment="adopt"), Cautious(ADOPT(), floor=0.9)),
    "grams": (ComposedStep(sign="grams", weight_decay=0.1), Grams(eps=1e-8, weight_decay=0.1)),
    "cwd": (ComposedStep(weight_decay=0.5, cwd=True), CautiousWeightDecay(weight_decay=0.5)),
    "dynamic": (ComposedStep(weight_decay=0.5, schedule=SCHEDULE), DynamicWeightDecay(0.5, **SCHEDULE)),
    "spd": (ComposedStep(spd=1.0), spd.SPD(1.0)),
    "spd anchored": (ComposedStep(spd=0.5, anchor=ANCHOR), spd.SPD(0.5, ANCHOR)),
}


@pytest.mark.parametrize("name", ALONE)
def test_one_technique_alone_is_its_oracle(rng, name):
    composed, oracle = ALONE[name]
    p = q = rng.standard_normal(SHAPE)
    bias = rng.standard_normal(SHAPE)
    for g in rng.standard_normal((40, *SHAPE)) + bias:
        kept = g.copy()
        p, q = composed.step(p, g, 1e-2), oracle.step(q, g, 1e-2)
        np.testing.assert_array_equal(g, kept)
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-13)


def test_agr_comes_before_orthograd(rng):
    p, g = rng.standard_normal((2, *SHAPE))
    chain = ComposedStep(agr=True, orthograd=True)
    chain.step(p, g, 0.1)
    assert abs(np.sum(p * chain.trace["g"])) <= 1e-13
    assert np.linalg.norm(chain.trace["g"]) == pytest.approx(np.linalg.norm(agr.agr(g)))


@pytest.mark.parametrize("sign", ["cautious", "grams"])
def test_sign_stage_reads_the_gradient_after_the_gradient_stage(rng, sign):
    p = rng.standard_normal(SHAPE)
    chain = ComposedStep(orthograd=True, sign=sign)
    for g in rng.standard_normal((3, *SHAPE)) + 2 * p:  # mostly along p: OrthoGrad turns many signs
        chain.step(p, g, 0.1)
        u, used = chain.trace["u_signed"], chain.trace["g"]
        assert (u * used >= 0).all()
        assert (u * g < 0).any()


def test_tam_reads_the_gradient_after_the_gradient_stage(rng):
    p, gs = rng.standard_normal(SHAPE), rng.standard_normal((5, *SHAPE))
    chain, alone = ComposedStep(orthograd=True, tam={}), TAM()
    for g in gs:
        chain.step(p, g, 0.1)
        alone.step(p, orthograd.orthograd(p, g), 0.1)
    assert chain.torque.s == pytest.approx(alone.torque.s, rel=1e-12)


def test_cautious_decay_reads_the_update_before_the_cautious_mask(rng):
    p = rng.standard_normal((40, 30))
    chain, lr, strength = ComposedStep(sign="cautious", weight_decay=0.5, cwd=True), 0.1, 0.5
    for g in rng.standard_normal((3, 40, 30)):
        out, u = chain.step(p, g, lr), chain.trace["u"]
    held = u * g <= 0
    for entries, keep in ((held & (u * p < 0), 1.0), (held & (u * p > 0), 1 - lr * strength)):
        assert entries.any()
        np.testing.assert_allclose(out[entries], keep * p[entries], rtol=1e-14)
    np.testing.assert_allclose(chain.trace["u_signed"], cautious.cautious(u, g))


def test_cautious_decay_reads_the_update_after_grams(rng):
    p = rng.standard_normal(SHAPE)
    chain, plain = (ComposedStep(sign="grams", weight_decay=w, cwd=True) for w in (0.5, 0.0))
    for g in rng.standard_normal((3, *SHAPE)):
        taken = plain.step(p, g, 0.1) - chain.step(p, g, 0.1)
    np.testing.assert_allclose(taken, 0.1 * 0.5 * p * (g * p >= 0), atol=1e-15)


@pytest.mark.parametrize("cwd", [False, True])
def test_decay_uses_the_plain_lr(rng, cwd):
    p, g = rng.standard_normal((2, *SHAPE))
    rows = np.arange(1.0, 8).reshape(7, 1)
    with_decay, without = (ComposedStep(weight_decay=w, cwd=cwd).step(p, g, 0.1, rows) for w in (0.5, 0.0))
    np.testing.assert_allclose(without, p - 0.1 * rows * AdamW().direction(g))
    u = AdamW().direction(g)
    np.testing.assert_allclose(without - with_decay, 0.1 * 0.5 * p * (u * p >= 0 if cwd else 1), atol=1e-15)


def test_spd_reads_the_raw_gradient_and_the_scaled_step(rng):
    """With OrthoGrad and anchor 0, <g_perp, p> is rounding: only the raw gradient can decide."""
    p = rng.standard_normal(SHAPE)
    chain, fired = ComposedStep(orthograd=True, spd=1.0, agr=True), 0
    for g in rng.standard_normal((60, *SHAPE)):
        out, p_tilde = chain.step(p, g, 0.1, 3.0), chain.trace["p_tilde"]
        grew = np.linalg.norm(p_tilde) > np.linalg.norm(p)
        if np.sum(g * p) > 0 and grew:
            fired += 1
            assert np.linalg.norm(out) == pytest.approx(np.linalg.norm(p), rel=1e-13)
        else:
            np.testing.assert_array_equal(out, p_tilde)
    assert fired > 5


def test_adopt_first_call_is_idle_but_counts_for_the_schedule(rng):
    p, g = rng.standard_normal((2, *SHAPE))
    chain = ComposedStep(moment="adopt", tam={}, weight_decay=0.5, cwd=True, schedule=SCHEDULE, sign="cautious")
    np.testing.assert_array_equal(chain.step(p, g, 0.1), p)
    for t in range(2, 9):
        chain.step(p, g, 0.1)
        assert chain.trace["weight_decay"] == pytest.approx(weight_decay_at(t, 0.5, **SCHEDULE))


@pytest.mark.parametrize("rule", [LoRAPlus(4.0), ALLoRA(4.0), Kronecker(0.5), None], ids=lambda r: type(r).__name__)
def test_pair_rules(rng, rule):
    """A rule on two plain chains is the rule's own oracle; multipliers come from both factors before the step."""
    A, B = rng.standard_normal((3, 8)), rng.standard_normal((6, 3))
    pair = ComposedPair(ComposedStep(weight_decay=0.1), ComposedStep(weight_decay=0.1), rule)
    A1, B1 = A, B
    if rule is None:
        alone = AdamW(weight_decay=0.1), AdamW(weight_decay=0.1)
    else:
        rule.weight_decay = 0.1
    for _ in range(20):
        gA, gB = rng.standard_normal((3, 8)), rng.standard_normal((6, 3))
        A1, B1 = pair.step(A1, B1, gA, gB, 1e-2)
        if rule is None:
            A, B = alone[0].step(A, gA, 1e-2), alone[1].step(B, gB, 1e-2)
        else:
            A, B = rule.step(A, B, gA, gB, 1e-2)
        np.testing.assert_allclose(A1, A, atol=1e-13)
        np.testing.assert_allclose(B1, B, atol=1e-13)


@pytest.mark.parametrize("options", [{"sign": "both"}, {"spd": 1.0, "weight_decay": 0.1}])
def test_excluded_combinations_are_refused(options):
    with pytest.raises(ValueError, match=r"sign|SPD"):
        ComposedStep(**options)
