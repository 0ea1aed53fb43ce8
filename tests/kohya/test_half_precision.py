"""LyCORIS modules and half-precision inputs without autocast, as Anima's adaptive norms have them."""

import pytest
import torch
from torch import nn

from hina_kohya.trainers import hooks


class Transformer2DModel(nn.Module):
    """A block that LyCORIS looks for."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


LAYERS = {
    "linear": (lambda: nn.Linear(16, 16), (2, 4, 16), "attn-mlp"),
    "conv": (lambda: nn.Conv2d(16, 16, 3, padding=1), (2, 16, 8, 8), "full"),
}
ALGORITHMS = {
    **{f"{algo}, DoRA": (f"algo={algo}", "dora_wd=True") for algo in ("lora", "locon", "loha", "lokr")},
    **{f"{algo}, DoRA by input": (f"algo={algo}", "dora_wd=True", "wd_on_output=False") for algo in ("lora", "loha")},
    **{algo: (f"algo={algo}",) for algo in ("lora", "loha", "lokr", "glora", "diag-oft", "boft", "ia3", "dylora")},
}


@pytest.fixture
def lycoris():
    from lycoris.config import PRESET
    from lycoris.kohya import LycorisNetworkKohya

    yield hooks.network_module("lycoris.kohya")
    hooks.uninstall()
    LycorisNetworkKohya.apply_preset(PRESET["full"])


def network_on(module, layer, words, preset, dtype):
    torch.manual_seed(0)
    unet = nn.Sequential(Transformer2DModel(layer())).to(dtype).requires_grad_(False)
    given = dict(word.split("=") for word in words)
    network = module.create_network(1.0, 4, 4, None, [], unet, preset=preset, factor="4", **given)
    network.apply_to([], unet, False, True)
    for param in network.parameters():
        nn.init.normal_(param, mean=0.1, std=0.1)
    return unet, network.train()


@pytest.mark.parametrize(
    ("algorithm", "layer", "dtype"),
    [
        *((algorithm, layer, torch.bfloat16) for algorithm in ALGORITHMS for layer in LAYERS),
        ("lora, DoRA", "linear", torch.float16),
    ],
    ids=str,
)
def test_half_precision_without_autocast(lycoris, algorithm, layer, dtype):
    """The output keeps its dtype, every factor its float32 gradient, and both are those of float32, to rounding."""
    make, shape, preset = LAYERS[layer]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    outputs, gradients = [], []
    for kind in (torch.float32, dtype):
        unet, network = network_on(lycoris, make, ALGORITHMS[algorithm], preset, kind)
        torch.manual_seed(2)  # DyLoRA draws its rank
        output = unet(x.to(kind))
        assert output.dtype == kind
        output.float().square().mean().backward()
        assert {param.grad.dtype for param in network.parameters() if param.grad is not None} == {torch.float32}
        outputs.append(output.float())
        gradients.append(torch.cat([param.grad.flatten() for param in network.parameters() if param.grad is not None]))
    for exact, rounded in (outputs, gradients):
        assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.99
        assert 0.97 < rounded.norm() / exact.norm() < 1.03


def test_under_autocast_nothing_changes(lycoris):
    from lycoris import kohya

    results = []
    for creator in (kohya.create_network.__wrapped__, kohya.create_network):
        module = type("module", (), {"create_network": staticmethod(creator)})
        unet, _ = network_on(module, LAYERS["linear"][0], ("algo=lora", "dora_wd=True"), "attn-mlp", torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(unet(torch.ones(2, 16, dtype=torch.bfloat16)))
    assert torch.equal(*results)
