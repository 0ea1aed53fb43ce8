"""A new learning rate on resume, in the trainers: what TensorBoard shows in every later step."""

import math
import re

import pytest

OVERRIDE = "override_hyperparameters=True"
WAYS = {
    "hina_kohya.network": {"network": "hina_kohya.network", "network_args": ("inner=networks.lora",)},
    "launcher": {"network": "networks.lora", "hooks": True},
}


def run(trainer, way, lr, steps, *extra, args=()):
    schedule = ("--lr_scheduler", "cosine", "--lr_warmup_steps", "2", "--save_state", *extra)
    return trainer.train(**WAYS[way], optimizer="HinaAdamW", optimizer_args=args, steps=steps, lr=lr, extra=schedule)


def rates(report):
    return {tag: values for tag, values in report.scalars.items() if tag.startswith("lr/")}


def messages(report):
    """The log without the places that sd-scripts' log handler writes into the lines."""
    return re.sub(r" \w+\.py:\d+", "", report.log)


@pytest.mark.slow
@pytest.mark.old_layout_too
@pytest.mark.parametrize("way", WAYS)
def test_the_new_rate_holds_in_every_later_step(trainer, way):
    saved = run(trainer, way, "1e-3", 3).out / "lora-state"
    whole = rates(run(trainer, way, "2e-4", 6))
    resumed = run(trainer, way, "2e-4", 6, "--resume", str(saved), "--skip_until_initial_step", args=(OVERRIDE,))
    found = rates(resumed)
    assert found.keys() == whole.keys()
    for tag, values in found.items():
        assert values == pytest.approx(whole[tag][3:])
        assert len(values) == 3
    assert "the schedule goes on from a learning rate of 0.0002" in messages(resumed)


@pytest.mark.slow
def test_without_the_override_the_old_schedule_goes_on_and_both_rates_are_said(trainer):
    saved = run(trainer, "launcher", "1e-3", 3).out / "lora-state"
    resumed = run(trainer, "launcher", "2e-4", 6, "--resume", str(saved), "--skip_until_initial_step")
    done = [(step - 2) / 4 for step in (4, 5, 6)]
    for values in rates(resumed).values():
        assert values == pytest.approx([1e-3 * (1 + math.cos(math.pi * each)) / 2 for each in done], abs=1e-9)
    asked = "learning rate 0.0002 was asked for; the checkpoint's schedule (0.001) goes on; add"
    assert f"{asked} {OVERRIDE} for 0.0002" in messages(resumed)


@pytest.mark.slow
def test_another_optimizers_schedule_is_left_alone(trainer):
    """torch's AdamW goes on as it does without us."""
    chosen = {"network": "hina_kohya.network", "network_args": ("inner=networks.lora",), "optimizer": "AdamW"}
    first = trainer.train(**chosen, steps=2, lr="1e-3", extra=("--save_state",))
    resume = ("--resume", str(first.out / "lora-state"), "--skip_until_initial_step")
    again = trainer.train(**chosen, steps=4, lr="2e-4", extra=resume)
    assert {f"{lr:g}" for values in rates(again).values() for lr in values} == {"0.001"}
