"""Our training configs as a test uses them: read as the trainers do, and on a model of one layer."""

import pytest
import toml
import torch
from torch import nn

from hina_kohya.trainers import hooks, optimizer_names, optimizers
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from tests.support import runs

FOLDER = runs.ROOT / "configs" / "training"
# A layer of each model that is trained: its block's class, where that is, its path in the block, and its width.
LAYERS = {
    "sd15": ("Transformer2DModel", "blocks.0", "ff", 640), "sdxl": ("Transformer2DModel", "blocks.0", "ff", 1280),
    "sd35": ("SingleDiTBlock", "blocks.0", "mlp", 1536), "flux1": ("DoubleStreamBlock", "blocks.0", "img_mlp", 3072),
    "lumina2": ("JointTransformerBlock", "layers.0", "feed_forward", 2304),
    "anima": ("Block", "blocks.0", "mlp.layer1", 2048), "wan22": ("WanAttentionBlock", "blocks.0", "ffn", 5120),
    "qwenimage": ("QwenImageTransformerBlock", "blocks.0", "img_mlp", 3072),
    "zimage": ("ZImageTransformerBlock", "layers.0", "feed_forward.w1", 3840),
}  # fmt: skip
OWN = {"networks.lokr": "lokr"}  # networks of trainers that are what LyCORIS calls so; the others are LoRA


def read(name):
    """One level of sections flattened, as sd-scripts does; there, the later of two equal keys wins without a word."""
    sections = toml.load(FOLDER / f"{name}.toml").values()
    flat = {key: value for section in sections for key, value in section.items()}
    assert len(flat) == sum(map(len, sections))
    return flat


def model_of(name):
    return name.partition("_")[0]


def network_arguments(config):
    return dict(word.split("=", 1) for word in config.get("network_args", []))


def optimizer_of(config, params, lr):
    cls = optimizer_names.resolve(config["optimizer_type"], SD_SCRIPTS)
    return optimizers.build(cls, config.get("optimizer_args"), params, lr)[2]


@pytest.fixture
def lycoris():
    """hina_kohya.lycoris; afterwards no hook, and LyCORIS' targets as after its import."""
    from lycoris.config import PRESET
    from lycoris.kohya import LycorisNetworkKohya

    yield hooks.network_module("lycoris.kohya")
    hooks.uninstall()
    LycorisNetworkKohya.apply_preset(PRESET["full"])


class Model(nn.Module):
    """One block with one layer."""

    def __init__(self, kind, place, path, width):
        super().__init__()
        self.layer = [nn.Linear(width, width)]  # in a list, so that its path is the block's
        holder: nn.Module = self
        *folders, name = f"{place}.{path}".split(".")
        for number, folder in enumerate(folders):
            holder.add_module(folder, type(kind, (nn.Module,), {})() if number == 1 else nn.Module())
            holder = holder.get_submodule(folder)
        holder.add_module(name, self.layer[0])

    def forward(self, x):
        return self.layer[0](x)


def adapted(module, name, config, dtype=torch.float32):
    """A model with one layer, and a new network on it."""
    torch.manual_seed(0)
    unet, text_encoders = Model(*LAYERS[model_of(name)]).to(dtype), [nn.Identity()]
    words = network_arguments(config)
    given = {"algo": OWN.get(words.pop("inner", ""), "lora"), "preset": "attn-mlp", **words, "dropout": None}
    if config["network_module"] == "hina_kohya.adlrns":
        given |= {"algo": "adlrns", "bins": "1"}  # this model has no timestep
    network = module.create_network(
        1.0, config["network_dim"], config["network_alpha"], None, text_encoders, unet, neuron_dropout=None, **given
    )
    network.apply_to(text_encoders, unet, False, True)
    return unet, network


def descent(unet, optimizer):
    """By how much one step lowers a linear loss."""
    torch.manual_seed(1)
    width = unet.layer[0].in_features
    inputs, slope = torch.randn(16, width), torch.randn(16, width)
    losses = []
    for _ in range(2):
        losses.append((unet(inputs) * slope).sum())
        losses[-1].backward()
        optimizer.step()
    return losses[0].item() - losses[1].item()
