"""The hina/... scalars reach the tracker in a whole training: one for each step, and no bit of the file changes."""

import pytest

NATIVE = ("inner=networks.lora", "loraplus_lr_ratio=4")
RATES = ("--text_encoder_lr", "1e-4", "--unet_lr", "2e-4")


def train(trainer, *words, optimizer="HinaAdamW", steps=4, extra=()):
    return trainer.train(
        network="hina_kohya.network", network_args=(*NATIVE, *words), optimizer=optimizer, steps=steps,
        extra=(*RATES, *extra),
    )  # fmt: skip


def tags(report, kind=""):
    return {tag for tag in report.scalars if tag.startswith(f"hina/{kind}")}


@pytest.mark.slow
@pytest.mark.old_layout_too
def test_for_an_optimizer_of_ours(trainer):
    measured, without = train(trainer, "log_every=1"), train(trainer, "log_every=0")
    assert measured.bits == without.bits
    assert tags(without) == set()
    groups = {"textencoder", "textencoder plus", "unet", "unet plus"}
    assert groups <= {tag.removeprefix("lr/") for tag in measured.scalars if tag.startswith("lr/")}
    assert tags(measured, "effective_lr") == {f"hina/effective_lr/{group}" for group in groups}
    blocks = {tag.rpartition("/")[2] for tag in tags(measured, "update_ratio")}
    assert blocks == {tag.rpartition("/")[2] for tag in tags(measured, "weight_norm")}
    assert blocks >= {"te1 layers 0", "unet down_blocks 0"}
    assert measured.scalars["hina/skipped"] == [0.0] * 3  # measuring begins with the first that is logged
    ratios = [value for tag in tags(measured, "update_ratio") for value in measured.scalars[tag]]
    assert all(0 < ratio < 1 for ratio in ratios)
    assert len(ratios) == 3 * len(blocks)


@pytest.mark.slow
def test_for_adamw_of_torch(trainer):
    report = train(trainer, "log_every=2", optimizer="AdamW", steps=5)
    kinds = {tag.split("/")[1] for tag in tags(report)}
    assert kinds == {"update_ratio", "weight_norm"}
    assert {len(report.scalars[tag]) for tag in tags(report)} == {2}  # after steps 3 and 5


@pytest.mark.slow
def test_accumulated_batches_are_one_step(trainer):
    report = train(trainer, "log_every=1", steps=3, extra=("--gradient_accumulation_steps", "2"))
    # shares of nothing have no first value: A has zeros for gradients then, and B (lora_up, "plus") is still zero
    shares = tags(report, "cautious_kept") | {tag for tag in tags(report, "decay") if tag.endswith(" plus")}
    steady = tags(report) - shares
    assert len(steady) > 8
    assert {len(report.scalars[tag]) for tag in steady} == {3}  # the first batch was logged before the first step


@pytest.mark.slow
def test_in_musubi_tuner(musubi):
    report = musubi.train(
        network="hina_kohya.network", network_args=("inner=networks.lora_wan", "log_every=1"), optimizer="HinaAdamW",
        steps=3,
    )  # fmt: skip
    assert {tag.split("/")[1] for tag in tags(report)} >= {"effective_lr", "update_ratio", "weight_norm", "skipped"}
    assert tags(report, "effective_lr") == {"hina/effective_lr/unet"}
    assert {len(report.scalars[tag]) for tag in tags(report)} == {2}


@pytest.mark.slow
def test_a_value_that_is_none_is_refused(trainer):
    report = trainer.train(network="hina_kohya.network", network_args=(*NATIVE, "log_every=often"), steps=1, rc=1)
    assert "log_every='often' must be a whole number of steps, at least 0; write log_every=10" in report.log
