"""The double trains in the order of SD_SCRIPTS.md (sections 1, 4, 7 to 9), and so does sd-scripts itself."""

import pytest
import torch

PROBE = {"network": "tests.support.order_probe", "optimizer": "tests.support.order_probe.AdamW"}


def test_order_of_events(trainer):
    report = trainer.train(**PROBE, network_args=("a=b=c", "d=1"), steps=2, extra=("--text_encoder_lr", "1e-4"))
    step = ["step None torch.float32", "zero_grad True"]
    assert [event for event in report.events if not event.startswith("norm")] == [
        "import",
        "create_network a=b=c d=1 dropout=None",
        "prepare_network 2",
        "apply_to True True",
        "prepare_optimizer_params 0.0001 None 0.001",
        "optimizer torch.float32",
        "optimizer.load_state_dict 0",
        *step, *step,
    ]  # fmt: skip
    assert report.meta["ss_optimizer"] == "tests.support.order_probe.AdamW"
    assert report.meta["ss_network_module"] == "tests.support.order_probe"
    assert report.meta["ss_network_args"] == '{"a": "b=c", "d": "1", "dropout": null}'
    assert len(report.losses) == len(report.scalars["lr/textencoder"]) == len(report.scalars["lr/unet"]) == 2


def test_a_type_error_of_the_network_is_swallowed(trainer):
    report = trainer.train(**PROBE, network_args=("fails=1",), steps=1)
    assert [event for event in report.events if "params" in event] == [
        "prepare_optimizer_params None None 0.001", "prepare_optimizer_params None None",
    ]  # fmt: skip
    assert "TypeError" not in report.log
    assert "lr/unet plus" not in report.scalars


def test_gradients_are_clipped_before_the_optimizer_sees_them(trainer):
    report = trainer.train(**PROBE, steps=1, extra=("--max_grad_norm", "0.001"))
    assert report.events[-3] == "norm 0.0010"


def test_parameters_become_bf16_after_the_optimizer_was_made(trainer):
    report = trainer.train(**PROBE, steps=1, extra=("--mixed_precision", "bf16", "--full_bf16"))
    assert "optimizer torch.float32" in report.events
    assert report.events[-2] == "step None torch.bfloat16"


def test_accumulation(trainer):
    report = trainer.train(**PROBE, steps=2, extra=("--gradient_accumulation_steps", "2"))
    assert sum(event.startswith("step") for event in report.events) == 2
    assert len(report.losses) in {2, 4}  # TensorBoard keeps one of two values for a step, or both


@pytest.mark.slow
def test_state_is_saved_and_resumed(trainer):
    first = trainer.train(network="networks.lora", steps=2, extra=("--save_state",))
    saved = first.out / "lora-state"
    names = {"model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "train_state.json"}
    assert names <= {path.name for path in saved.iterdir()}
    state = torch.load(saved / "optimizer.bin", weights_only=True)
    assert {int(each["step"]) for each in state["state"].values()} == {2}
    resumed = ("--resume", str(saved), "--save_state")
    for skip, steps in (((), 5), (("--skip_until_initial_step",), 3)):
        again = trainer.train(network="networks.lora", steps=3, extra=(*resumed, *skip))
        state = torch.load(again.out / "lora-state" / "optimizer.bin", weights_only=True)
        assert {int(each["step"]) for each in state["state"].values()} == {steps}
    failure = trainer.train(network="networks.lora", steps=2, extra=resumed, rc=1)
    assert "AssertionError" in failure.log


def test_dim_from_weights(trainer):
    first = trainer.train(network="networks.lora", steps=1, extra=("--network_dim", "2"))
    again = ("--network_weights", str(first.weights), "--dim_from_weights", "--network_dim", "8")
    second = trainer.train(network="networks.lora", optimizer="SGD", lr="1e-30", steps=1, extra=again)
    assert second.tensors.keys() == first.tensors.keys()
    for name, tensor in first.tensors.items():
        torch.testing.assert_close(second.tensors[name], tensor)


def test_most_ranks_of_dylora_have_no_gradient(trainer):
    report = trainer.train(network="networks.dylora", steps=1, extra=("--save_state",))
    state = torch.load(report.out / "lora-state" / "optimizer.bin", weights_only=True)
    params = sum(len(each["params"]) for each in state["param_groups"])
    assert 0 < len(state["state"]) <= params / 4


def test_lycoris_full_fails_on_sd1(trainer):
    report = trainer.train(network_args=("preset=full",), steps=1, rc=1)
    assert "duplicated lora name" in report.log


def test_sdxl_imports_train_network(trainer):
    if trainer.name == "sd-scripts":
        pytest.skip("the harness has an SD1.x model alone")
    report = trainer.train(network="networks.lokr", script="sdxl_train_network.py", steps=2)
    assert any(name.startswith("lora_te2_") and name.endswith("lokr_w1") for name in report.tensors)
    assert set(report.scalars) >= {"lr/textencoder 1", "lr/textencoder 2", "lr/unet"}
    trainer.train(network="networks.lokr", steps=1, rc=1)
