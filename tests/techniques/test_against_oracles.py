"""Each technique, through the real optimizer in float64, against its one-matrix oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hina_kohya.core.optimizer import HinaOptimizer
from hina_kohya.core.registry import build
from tests.oracles import (
    adamw,
    adopt,
    agr,
    allora,
    cautious,
    cautious_weight_decay,
    compose,
    dynamic_weight_decay,
    grams,
    kronecker,
    lora_rite,
    loraplus,
    orthograd,
    spd,
    tam,
)
from tests.support.oracle_runs import (
    DECAY,
    LR,
    MATRICES,
    PAIR_SHAPES,
    PAIRS,
    STEPS,
    close,
    flat,
    gradients,
    rate,
    sparse,
    start,
)


def adam():
    return adamw.AdamW()


SINGLE = {
    "adam": ([], lambda: adamw.AdamW(weight_decay=DECAY)),
    "adopt": (["adopt"], lambda: adopt.ADOPT(weight_decay=DECAY)),
    "adatam": (["adatam"], lambda: tam.AdaTAM(weight_decay=DECAY)),
    "agr": (["agr"], lambda: compose.ComposedStep(agr=True, weight_decay=DECAY)),
    "orthograd": (["orthograd"], lambda: compose.ComposedStep(orthograd=True, weight_decay=DECAY)),
    "tam": (["tam"], lambda: tam.TAM(weight_decay=DECAY)),
    "cautious": (["cautious"], lambda: cautious.Cautious(weight_decay=DECAY)),
    "grams": (["grams"], lambda: grams.Grams(eps=1e-8, weight_decay=DECAY)),
    "cautious_weight_decay": (
        ["cautious_weight_decay"],
        lambda: cautious_weight_decay.CautiousWeightDecay(weight_decay=DECAY),
    ),
    "dynamic_weight_decay": (
        [("dynamic_weight_decay", {"transition_steps": 8})],
        lambda: dynamic_weight_decay.DynamicWeightDecay(DECAY, transition_steps=8),
    ),
}


def techniques(wanted):
    chosen = [build(name, **options) for name, options in ((w, {}) if isinstance(w, str) else w for w in wanted)]
    names = {technique.name for technique in chosen}
    moment = [] if names & {"adopt", "adatam", "lora_rite"} else [build("adam")]
    decay = [] if "cautious_weight_decay" in names else [build("weight_decay")]
    return [*moment, *decay, *chosen] if "lora_rite" not in names else [build("adam"), *decay, *chosen]


def run(wanted, shapes, grads, *, decay=DECAY, zero=()):
    """Final parameters of the optimizer, as numpy, with a learning rate that changes every step."""
    initial = {name: value * (name not in zero) for name, value in start(shapes).items()}
    params = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in initial.items()}
    optimizer = HinaOptimizer(
        params.items(), techniques(wanted), lr=LR, weight_decay=decay, state="fp32", decay_roles="all"
    )
    for step, by_name in enumerate(grads):
        optimizer.param_groups[0]["lr"] = rate(step)
        for name, param in params.items():
            param.grad = None if by_name[name] is None else torch.from_numpy(by_name[name])
        optimizer.step()
    return initial, {name: param.detach().numpy() for name, param in params.items()}


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("name", SINGLE)
def test_one_matrix(name, holes):
    wanted, make = SINGLE[name]
    grads = gradients(MATRICES, MATRICES, STEPS)
    grads = sparse(grads) if holes else grads
    initial, final = run(wanted, MATRICES, grads)
    for each, p in initial.items():
        oracle = make()
        for step, by_name in enumerate(grads):
            p = oracle.step(p, by_name[each], rate(step))
        close(final[each], p)


@pytest.mark.parametrize("strength", [0.06, 0.5, 1.0, 3.0])
def test_spd_of_factors_and_of_whole_weights(strength):
    shapes = {"lora_unet_a.lora_down.weight": (4, 6), "lora_unet_a.lora_up.weight": (5, 4), "head.weight": (7, 5)}
    grads = gradients(shapes, shapes, STEPS)
    initial, final = run([("spd", {"lam": strength})], shapes, grads, decay=DECAY)
    for name, p in initial.items():
        oracle = spd.SPD(strength, anchor=p if name == "head.weight" else 0.0, moment=adam())
        for step, by_name in enumerate(grads):
            p = oracle.step(p, by_name[name], rate(step))
        close(final[name], p)


PAIR_RULES = {
    "lora_plus": ([("lora_plus", {"ratio": 3.0})], lambda: loraplus.LoRAPlus(3.0, weight_decay=DECAY)),
    "allora_rows": ([("allora_rows", {"eta": 2.0})], lambda: allora.ALLoRA(2.0, weight_decay=DECAY)),
    "lora_rite": ([("lora_rite", {"eps": 1e-8})], lambda: lora_rite.LoRARite(eps=1e-8, weight_decay=DECAY)),
}


@pytest.mark.parametrize(("zero_start", "holes"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("name", PAIR_RULES)
def test_pairs(name, zero_start, holes):
    wanted, make = PAIR_RULES[name]
    grads = gradients(PAIR_SHAPES, PAIR_SHAPES, STEPS)
    grads = sparse(grads) if holes else grads
    zero = [name for name in PAIR_SHAPES if "lora_up" in name] if zero_start else ()
    initial, final = run(wanted, PAIR_SHAPES, grads, zero=zero)
    for module in PAIRS:
        names = f"{module}.lora_down.weight", f"{module}.lora_up.weight"
        a, b = flat(initial, names)
        oracle = make()
        for step, by_name in enumerate(grads):
            a, b = oracle.step(a, b, *flat(by_name, names), rate(step))
        for mine, theirs in zip(flat(final, names), (a, b), strict=True):
            # few rows at a step: V is all but singular, its root ill-conditioned
            np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-7 if holes else 1e-9)


def test_kronecker_rule_on_full_and_low_rank_factors():
    shapes = {
        "lora_unet_a.lokr_w1": (4, 4),
        "lora_unet_a.lokr_w2": (6, 5),
        "lora_unet_b.lokr_w1": (4, 4),
        "lora_unet_b.lokr_w2_a": (6, 2),
        "lora_unet_b.lokr_w2_b": (2, 5),
    }
    floor = 0.05
    grads = gradients(shapes, shapes, STEPS)
    initial, final = run([("kronecker_rms", {"floor": floor})], shapes, grads)
    w = [initial["lora_unet_a.lokr_w1"], initial["lora_unet_a.lokr_w2"]]
    oracle = kronecker.Kronecker(floor=floor, weight_decay=DECAY)
    for step, by_name in enumerate(grads):
        w = oracle.step(*w, by_name["lora_unet_a.lokr_w1"], by_name["lora_unet_a.lokr_w2"], rate(step))
    close(final["lora_unet_a.lokr_w1"], w[0])
    close(final["lora_unet_a.lokr_w2"], w[1])
    names = [name for name in shapes if name.startswith("lora_unet_b")]
    moments, values = [adam() for _ in names], [initial[name] for name in names]
    for step, by_name in enumerate(grads):
        sizes = [kronecker.rms(value) for value in values]
        others = [np.sqrt(2) * np.prod(sizes[:i] + sizes[i + 1 :]) for i in range(3)]
        values = [
            value * (1 - rate(step) * DECAY) - rate(step) / max(other, floor) * moment.direction(by_name[name])
            for name, value, other, moment in zip(names, values, others, moments, strict=True)
        ]
    for name, value in zip(names, values, strict=True):
        close(final[name], value)


@pytest.mark.slow
@given(
    chosen=st.fixed_dictionaries(
        {
            "agr": st.booleans(),
            "orthograd": st.booleans(),
            "tam": st.booleans(),
            "moment": st.sampled_from(["adam", "adopt"]),
            "sign": st.sampled_from([None, "cautious", "grams"]),
            "schedule": st.booleans(),
            "end": st.sampled_from(["decay", "cwd", "spd"]),
        }
    ),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_any_composition(chosen, seed):
    """The whole chain against the canonical order of TECHNIQUES.md section 16."""
    flags = [name for name in ("agr", "orthograd", "tam") if chosen[name]]
    wanted = [
        *flags,
        *([chosen["sign"]] if chosen["sign"] else []),
        *(["adopt"] if chosen["moment"] == "adopt" else []),
    ]
    schedule = {"transition_steps": 3, "factor": 0.7, "min_ratio": 0.1}
    with_schedule = chosen["schedule"] and chosen["end"] != "spd"
    if with_schedule:
        wanted.append(("dynamic_weight_decay", {"transition_steps": 3}))
    wanted += {"decay": [], "cwd": ["cautious_weight_decay"], "spd": [("spd", {"lam": 0.7, "anchored": True})]}[
        chosen["end"]
    ]
    grads = gradients(MATRICES, MATRICES, 8, seed)
    initial, final = run(wanted, MATRICES, grads)
    for name, p in initial.items():
        oracle = compose.ComposedStep(
            agr=chosen["agr"],
            orthograd=chosen["orthograd"],
            tam={} if chosen["tam"] else None,
            moment=chosen["moment"],
            sign=chosen["sign"],
            weight_decay=0.0 if chosen["end"] == "spd" else DECAY,
            schedule=schedule if with_schedule else None,
            cwd=chosen["end"] == "cwd",
            spd=0.7 if chosen["end"] == "spd" else None,
            anchor=p,
        )
        for step, by_name in enumerate(grads):
            p = oracle.step(p, by_name[name], rate(step))
        np.testing.assert_allclose(final[name], p, rtol=1e-9, atol=1e-10)


def test_missing_gradients_do_not_count_as_steps():
    grads = gradients(MATRICES, MATRICES, STEPS)
    for step, by_name in enumerate(grads):
        if step % 3 == 1:
            by_name["first.weight"] = None
    initial, final = run(["adopt", "tam"], MATRICES, grads)
    for name, p in initial.items():
        oracle = tam.TAM(moment=adopt.ADOPT(), weight_decay=DECAY)
        for step, by_name in enumerate(grads):
            if by_name[name] is not None:
                p = oracle.step(p, by_name[name], rate(step))
        close(final[name], p)


def test_agr_and_orthograd_oracles_leave_single_elements_alone():
    shapes = {"gain": (1,)}
    grads = gradients(shapes, shapes, 5)
    initial, final = run(["agr", "orthograd"], shapes, grads)
    p, oracle = initial["gain"], adamw.AdamW(weight_decay=DECAY)
    for step, by_name in enumerate(grads):
        p = oracle.step(p, by_name["gain"], rate(step))
    close(final["gain"], p)
    assert agr.agr(np.ones(3)).shape == orthograd.orthograd(np.ones(3), np.ones(3)).shape
