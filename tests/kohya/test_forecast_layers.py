"""The smallest layer of each kind, once forward and backward: what stops on a GPU stops here."""

import copy
import dataclasses as dc
from types import SimpleNamespace

import pytest
import torch

from hina_kohya.check.forecast import forecast, layers, table

pytestmark = pytest.mark.usefixtures("forked_python")


def faults(architecture="sd15", **arguments):
    network = {"preset": "attn-mlp", **arguments}
    return forecast(architecture, "lycoris.kohya", network_dim=4, network_args=network).faults


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full", "ia3", "dylora", "diag-oft", "glora", "tlora"])
def test_what_trains_has_no_fault(algorithm):
    assert faults(algo=algorithm, rank_dropout="0.0") == ()


@pytest.mark.slow
def test_rank_dropout_of_lokr_mixes_devices():
    """LyCORIS #291, in 4.1.3."""
    (fault,) = faults("sdxl", algo="lokr", rank_dropout="0.5")
    assert fault.startswith("warning: network_args: LokrModule stops on a GPU: it mixes tensors of two devices")


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "figures"), [("lora", "819 to 346 ms"), ("lokr", "849 to 370 ms")])
def test_where_bypass_saves_time_it_is_said_and_gone_with_it(algorithm, figures):
    def made(**more):
        given = {"algo": algorithm, "preset": "attn-mlp", **more}
        return forecast("sd15", "lycoris.kohya", network_dim=4, network_args=given)

    rebuilt = made()
    assert figures in rebuilt.faster
    assert rebuilt.faster in table(rebuilt).splitlines()
    for given in ("True", "False"):
        assert made(bypass_mode=given) == dc.replace(rebuilt, faster="")  # and nothing else comes or goes


def adapter(algorithm, layer, **more):
    from lycoris.wrapper import network_module_dict

    return network_module_dict[algorithm]("lora_unet_a", layer, 1.0, 4, 2, **more)


@pytest.mark.parametrize(
    ("algorithm", "more", "kernel", "said"),
    [
        ("lora", {}, 0, True), ("locon", {}, 1, True), ("lokr", {"module_dropout": 0.1}, 0, True),
        ("loha", {}, 0, False), ("full", {}, 0, False),
        ("lora", {"weight_decompose": True}, 0, False), ("lokr", {"dropout": 0.1}, 0, False),
        ("lokr", {"rank_dropout": 0.1}, 0, False), ("lora", {}, 3, False), ("lora", {"bypass_mode": True}, 0, False),
    ],
    ids=str,
)  # fmt: skip
def test_where_bypass_was_not_measured_or_does_not_fit_nothing_is_said(algorithm, more, kernel, said):
    layer = torch.nn.Conv2d(16, 16, kernel) if kernel else torch.nn.Linear(16, 16)
    network = SimpleNamespace(loras=[adapter("lora", torch.nn.Linear(16, 16)), adapter(algorithm, layer, **more)])
    if algorithm == "lokr":
        network.loras.pop(0)
    assert bool(layers.faster(network)) is said


@pytest.mark.parametrize(("algorithm", "more"), [("lora", {}), ("lokr", {"factor": 4})])
@pytest.mark.parametrize("layer", [torch.nn.Linear(16, 16), torch.nn.Conv2d(16, 16, 1)], ids=["linear", "1x1"])
def test_bypass_is_the_same_layer(algorithm, more, layer):
    given = torch.rand(2, 16, 5, 5) if isinstance(layer, torch.nn.Conv2d) else torch.rand(2, 16)
    results = []
    for bypassed in (None, True):
        torch.manual_seed(0)
        original = copy.deepcopy(layer)
        module = adapter(algorithm, original, bypass_mode=bypassed, **more)
        module.apply_to()
        for param in module.parameters():
            torch.nn.init.normal_(param)
        results.append(original(given))
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_convolutions_too():
    assert faults("sdxl", algo="lora", preset="full", conv_dim="4") == ()
