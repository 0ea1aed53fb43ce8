"""The table of schedules against the real `get_scheduler_fix`: every row with each option that it might read."""

import ast
import warnings
from importlib import import_module

import pytest
import torch

from hina_kohya.check.schema import every_option
from hina_kohya.trainers.facts import schedulers
from hina_kohya.trainers.facts.schedulers import ROWS

OPTIONS = (
    {}, {"lr_warmup_steps": 2}, {"lr_warmup_steps": 0.4}, {"lr_decay_steps": 3}, {"lr_scheduler_num_cycles": 2},
    {"lr_scheduler_power": 2.0}, {"lr_scheduler_timescale": 7}, {"lr_scheduler_min_lr_ratio": 0.1},
    {"lr_warmup_steps": 1, "lr_decay_steps": 0.4, "lr_scheduler_min_lr_ratio": 0.2, "lr_scheduler_num_cycles": 3},
    {"lr_scheduler_args": ["last_epoch=-1"]}, {"lr_scheduler_args": ["eta_min=1e-6"]},
    {"lr_scheduler_args": ["num_warmup_steps=1"]},
)  # fmt: skip
OTHERS = (
    {"lr_scheduler_type": "CosineAnnealingLR", "lr_scheduler_args": ["T_max=5", "eta_min=0.1"]},
    {"lr_scheduler_type": "torch.optim.lr_scheduler.StepLR", "lr_scheduler_args": ["step_size=2"]},
    {"lr_scheduler_type": "OneCycleLR"}, {"lr_scheduler_type": "CyclicLR"}, {"lr_scheduler_type": "NoSuchLR"},
    {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules='1:0.5,0.1'"]},
    {"lr_scheduler": "cosin"}, {"lr_scheduler": "reduce_lr_on_plateau"},
)  # fmt: skip
CASES = [{"lr_scheduler": name, **given} for name in ROWS for given in OPTIONS] + [*OTHERS]
STEPS = 8


def ours(given):
    """The learning rates before each step, as the table has them made; the name of what is raised."""
    names = (*schedulers.OPTIONS, "lr_scheduler", "lr_scheduler_type", "max_train_steps")
    args = {name: every_option()[name].unset for name in names} | given | {"max_train_steps": STEPS}
    arguments = {
        key: ast.literal_eval(value)
        for key, value in (word.split("=", 1) for word in given.get("lr_scheduler_args", []))
    }
    calling = schedulers.calling(args, arguments)
    row = ROWS.get(args["lr_scheduler"])
    if calling.refusal or (args["lr_warmup_steps"] and (args["lr_scheduler_type"] or (row and not row.warms_up))):
        return "refused"
    optimizer = torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.ones(1))], "lr": 1.0}], lr=1e-3)
    try:
        module, _, name = calling.path.rpartition(".")
        schedule = getattr(import_module(module), name)(optimizer, **calling.keywords)
    except (TypeError, ValueError, AttributeError):
        return "refused"
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            found.append(schedule.get_last_lr()[0])
            schedule.step()
    return found


def test_every_row_with_every_option(trainer):
    if trainer.name == "double":
        pytest.skip("the double knows four schedules")
    calls = [(["AdamW"], {**given, "max_train_steps": STEPS}) for given in CASES]
    for given, answer in zip(CASES, trainer.ask("many", "rates", calls), strict=True):
        mine = ours(given)
        if "error" in answer:
            assert mine == "refused", (given, answer)
        else:
            assert mine == pytest.approx(answer["rates"]), (given, answer)


def test_an_option_that_a_row_does_not_read_changes_nothing():
    for name, row in ROWS.items():
        base = {"lr_scheduler": name} | ({"lr_scheduler_min_lr_ratio": 0.3} if row.needs else {})
        for option, value in zip(schedulers.OPTIONS, (2, 3, 2, 2.0, 7, 0.1), strict=True):
            changed = ours(base | {option: value})
            if option in row.reads and option != schedulers.DECAY:
                assert changed != ours(base) or option in (schedulers.TIMESCALE, schedulers.LEAST, schedulers.CYCLES), (
                    name,
                    option,
                )
            elif option != schedulers.WARMUP:
                assert changed == ours(base), (name, option)
