"""A saved state beside the run that would resume from it."""

import pytest
import torch
from safetensors.torch import save_file

from hina_kohya.check.forecast import resume

MATRICES = {"lora_unet_a.lora_down.weight": (4, 8), "lora_unet_a.lora_up.weight": (8, 4)}


class Network(torch.nn.Module):
    def __init__(self, shapes=MATRICES):
        super().__init__()
        self.shapes = shapes

    def state_dict(self):
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}


def optimizer(cls=torch.optim.AdamW, lr=1e-4, **more):
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in MATRICES.values()]
    return cls([{"params": params, "lr": lr}], **more)


@pytest.fixture
def folder(tmp_path):
    """Of a run with AdamW at 1e-4."""
    state = tmp_path / "last-state"
    state.mkdir()
    save_file({name: torch.zeros(shape) for name, shape in MATRICES.items()}, state / "model.safetensors")
    saved = optimizer()
    torch.save(saved.state_dict(), state / "optimizer.bin")
    torch.save({"base_lrs": [1e-4], "last_epoch": 3}, state / "scheduler.bin")
    return state


def said(folder, network=None, made=None):
    made = made or optimizer()
    return list(resume.differences(folder, network or Network(), made.param_groups, made))


def test_the_same_run_resumes(folder):
    assert said(folder) == []


def test_another_rank_network_optimizer_and_rate(folder):
    (rank,) = said(
        folder,
        Network({name: tuple(2 * size if size == 4 else size for size in shape) for name, shape in MATRICES.items()}),
    )
    assert rank.startswith("error: resume: the state has other shapes in 2 tensors, as of another rank")
    (network,) = said(folder, Network({"lycoris_a.lokr_w1": (2, 2)}))
    assert "of another network: 1 of its 1 tensors are not in it, and 2 others are" in network
    (other,) = said(folder, made=optimizer(torch.optim.SGD, momentum=0.9))
    assert other == "error: resume: the state is another optimizer's: dampening, momentum, nesterov of SGD is not in it"
    (rate,) = said(folder, made=optimizer(lr=5e-4))
    assert rate == "warning: resume: the state's learning rates count, 0.0001, and not those of this run, 0.0005"


def test_other_groups_and_damage(folder):
    torch.save({"state": {}, "param_groups": [{"params": [0]}, {"params": [1]}]}, folder / "optimizer.bin")
    assert said(folder)[0] == "error: resume: the state has param groups of 1, 1 tensors, and this run makes 2"
    (folder / "optimizer.bin").write_bytes(b"not a state")
    assert "cannot be read as an optimizer's state" in said(folder)[0]
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "is damaged" in said(folder)[0]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_python")
def test_the_forecast_says_it(tmp_path, folder):
    """Of a real network: nothing of the state above fits it."""
    from hina_kohya.check.forecast import forecast, table

    made = forecast(
        "sd15", "lycoris.kohya", network_dim=4, network_args={"algo": "lora", "preset": "attn-mlp"}, resume=folder
    )
    assert "error: resume: the state is of another network" in table(made)
