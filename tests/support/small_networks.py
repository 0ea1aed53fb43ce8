"""A U-Net and a text encoder small enough for every test, with the class names that LyCORIS looks for."""

import importlib

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

FULL = "tests/adlrns/preset.toml"


class Transformer2DModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.first = nn.Linear(6, 16)
        self.second = nn.Linear(16, 4)
        self.how = None  # or use_reentrant

    def forward(self, x):
        return self.run(x) if self.how is None else checkpoint(self.run, x, use_reentrant=self.how)

    def run(self, x):
        hidden = self.conv(x).movedim(1, -1)
        return self.second(torch.tanh(self.first(hidden))).movedim(-1, 1)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Transformer2DModel()

    def forward(self, sample, timestep, encoder_hidden_states=None):
        return sample + self.block(sample)


class CLIPMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(5, 7)

    def forward(self, x):
        return self.fc1(x)


class TextEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = CLIPMLP()

    def forward(self, x):
        return self.mlp(x)


def frozen(model, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False).double()


def create(unet, text_encoder=None, module="hina_kohya.adlrns", dim=4, alpha=2, apply=True, creator=None, **arguments):
    """A network on the small models, random weights in both factors, float64, in training."""
    make = creator or importlib.import_module(module).create_network
    words = {"preset": FULL, **{name: str(value) for name, value in arguments.items()}}
    network = make(1.0, dim, alpha, None, text_encoder, unet, neuron_dropout=None, **words)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for lora in [*network.unet_loras, *network.text_encoder_loras]:
            for parameter in lora.parameters():
                nn.init.normal_(parameter, std=0.4)
    if apply:
        network.apply_to(text_encoder, unet, text_encoder is not None, True)
    return network.double().train()


def randomise(network, seed=2):
    """Other directions in every state."""
    random = torch.Generator().manual_seed(seed)
    for lora in network.adlrns_modules():
        kept = torch.rand(lora.adlrns_kept.shape, generator=random) < 0.5
        gain = torch.randn(kept.shape, generator=random)
        energy = torch.rand(kept.shape, generator=random) + 0.1
        lora.set_table(kept, gain, energy)


def batch(samples=5, seed=3):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 4, 6, 6, generator=random, dtype=torch.float64)
    return x, torch.randint(0, 1000, (samples,), generator=random)


def train(unet, network, steps, seed=0, samples=5, optimizer=None):
    torch.manual_seed(seed)
    optimizer = optimizer or torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        network.on_step_start(None, unet)
        x, timesteps = torch.randn(samples, 4, 6, 6, dtype=torch.float64), torch.randint(0, 1000, (samples,))
        target = x * (timesteps / 1000).view(-1, 1, 1, 1) + x.flip(1)
        (unet(x, timesteps) - target).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
