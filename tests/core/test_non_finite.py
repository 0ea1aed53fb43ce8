"""What is said of gradients that are not finite: soon, by name, without waiting, and not at every step."""

import json
import logging
import math

import pytest
import torch

from hina_kohya import AdaptiveHinaAdamW, HinaAdamW
from hina_kohya.core.state.counters import EVERY
from tests.support.counting import Counter
from tests.support.stepping import make_params, set_grads, train


def poisoned(optimizer, params, steps, victims, start=0, value=math.nan):
    for step in range(start, start + steps):
        set_grads(params, step)
        for victim in victims:
            params[victim].grad.flatten()[0] = value
        optimizer.step()


def warnings(caplog):
    return [record.message for record in caplog.records if "not finite" in record.message]


@pytest.mark.slow
def test_it_is_logged_by_name_and_again_when_it_has_doubled(caplog):
    params = make_params()
    optimizer = HinaAdamW(params.items())
    with caplog.at_level(logging.WARNING):
        poisoned(optimizer, params, 2 * EVERY, ["head.weight"])
        assert warnings(caplog) == [
            "gradients that are not finite: 1 of 14 parameters were left as they were, head.weight (20 steps)"
        ]
        poisoned(optimizer, params, 6 * EVERY, ["head.weight"], start=2 * EVERY)
    assert len(warnings(caplog)) == 3  # at 20, 40 and 80 steps
    assert "head.weight (80 steps)" in warnings(caplog)[-1]


def test_all_at_once_says_what_it_usually_is(caplog):
    params = make_params()
    optimizer = HinaAdamW(params.items())
    with caplog.at_level(logging.WARNING):
        poisoned(optimizer, params, 1, list(params), value=math.inf)
        optimizer.state_dict()
    assert "14 of 14 parameters were left as they were" in caplog.text
    assert "one NaN is enough where gradients are clipped by their common norm" in caplog.text
    assert caplog.text.count("not finite") == 1


def test_the_report_counts_them_at_any_time_and_over_new_plans():
    params = make_params()
    optimizer = HinaAdamW(list(params.values()))
    report = lambda: optimizer.get_optimization_info()["training_stats"]["non_finite_steps"]
    assert report() == {}
    index = list(params).index("head.weight")
    poisoned(optimizer, params, 3, ["head.weight"])
    assert json.loads(json.dumps(report())) == {f"group 0, parameter {index}": 3}
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})
    poisoned(optimizer, params, 2, ["head.weight", "head.bias"], start=3)
    assert report() == {f"group 0, parameter {index}": 5, f"group 0, parameter {index + 1}": 2}
    assert optimizer.get_optimization_info()["training_stats"]["global_step"] == 5


@pytest.mark.slow
def test_counting_never_waits():
    params = make_params()
    optimizer = HinaAdamW(params.items())
    poisoned(optimizer, params, EVERY - 1, ["head.weight"])
    for step in range(2 * EVERY):
        set_grads(params, step)
        params["head.weight"].grad[0, 0] = math.nan
        with Counter() as counter:
            optimizer.step()
        assert counter.synchronisations == []


@pytest.mark.parametrize("cls", [HinaAdamW, AdaptiveHinaAdamW])
def test_a_look_for_relationships_bears_bad_gradients(cls):
    params = make_params()
    optimizer = cls(list(params.values()), lr=1e-3)
    poisoned(optimizer, params, 6, ["lora_unet_a.lora_up.weight", "lora_unet_b.lora_down.weight"])
    train(optimizer, params, 3, start=6)
    assert all(param.isfinite().all() for param in params.values())


@pytest.mark.slow
def test_nothing_is_said_of_healthy_runs(caplog):
    params = make_params()
    optimizer = HinaAdamW(params.items())
    with caplog.at_level(logging.WARNING):
        train(optimizer, params, 3 * EVERY)
        optimizer.state_dict()
        optimizer.get_optimization_info()
    assert warnings(caplog) == []
