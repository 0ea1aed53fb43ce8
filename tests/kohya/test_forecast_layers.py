"""The smallest layer of each kind, once forward and backward: what stops on a GPU stops here."""

import pytest

from hina_kohya.check.forecast import forecast


def faults(**arguments):
    return forecast("sdxl", "lycoris.kohya", network_dim=4, network_args={"preset": "attn-mlp", **arguments}).faults


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full", "ia3", "dylora", "diag-oft", "glora", "tlora"])
def test_what_trains_has_no_fault(algorithm):
    assert faults(algo=algorithm, rank_dropout="0.0") == ()


def test_rank_dropout_of_lokr_mixes_devices():
    """LyCORIS #291, in 4.1.3."""
    (fault,) = faults(algo="lokr", rank_dropout="0.5")
    assert fault.startswith("warning: network_args: LokrModule stops on a GPU: it mixes tensors of two devices")


def test_convolutions_too():
    assert faults(algo="lora", preset="full", conv_dim="4") == ()
