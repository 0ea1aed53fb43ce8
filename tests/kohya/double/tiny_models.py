"""Base models of the double: random weights, and the class names that LyCORIS and networks.* look for."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

WIDTH = 32
WORDS = 16


class CLIPAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        return self.out_proj(functional.scaled_dot_product_attention(self.q_proj(x), self.k_proj(x), self.v_proj(x)))


class CLIPMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(functional.gelu(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn, self.mlp = CLIPAttention(), CLIPMLP()

    def forward(self, x):
        x = x + self.self_attn(x)
        return x + self.mlp(x)


class CLIPTextModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList([CLIPEncoderLayer()])

    def forward(self, tokens):
        return self.layers[0](self.embedding(tokens))


class TimestepEmbedding(nn.Module):
    """LyCORIS 4.1.3's preset full takes it twice, by class and by name, and fails, as with the real SD1.x."""

    def __init__(self):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(1, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, time):
        return self.linear_2(functional.silu(self.linear_1(time)))


class ResnetBlock2D(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x):
        return x + self.conv(functional.silu(self.norm(x)))


class CrossAttention(nn.Module):
    """What networks.oft looks for."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, text):
        return self.to_out(functional.scaled_dot_product_attention(self.to_q(x), self.to_k(text), self.to_v(text)))


class Transformer2DModel(nn.Module):
    """Attention to the text, then an MLP, over the pixels of an image [N, WIDTH, H, W]."""

    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTH), CrossAttention()
        self.ff_in, self.ff_out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, image, text):
        x = image.flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm(x), text)
        x = x + self.ff_out(functional.gelu(self.ff_in(x)))
        return x.transpose(1, 2).reshape(image.shape)


class DoubleStreamBlock(Transformer2DModel):
    """What networks.lora_flux looks for."""


class Block(Transformer2DModel):
    """What networks.lokr and networks.loha know Anima by."""


class DownBlock(nn.Module):
    def __init__(self, transformer):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock2D(), ResnetBlock2D()])
        self.attentions = nn.ModuleList([transformer(), transformer()])
        self.gradient_checkpointing = False

    def forward(self, x, text):
        if self.training and self.gradient_checkpointing:
            return checkpoint(self.run, x, text, use_reentrant=False)
        return self.run(x, text)

    def run(self, x, text):
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            x = attention(resnet(x), text)
        return x


class UNet2DConditionModel(nn.Module):
    """Latents [N, 4, H, W], timesteps [N] from 0 to 999 and a text [N, L, WIDTH] to a prediction of the noise."""

    def __init__(self, transformer=Transformer2DModel):
        super().__init__()
        self.conv_in, self.conv_out = nn.Conv2d(4, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)
        self.time_embedding = TimestepEmbedding()
        self.down_blocks = nn.ModuleList([DownBlock(transformer)])

    def enable_gradient_checkpointing(self):
        self.down_blocks[0].gradient_checkpointing = True

    def forward(self, latents, timestep, text):
        x = self.conv_in(latents) + self.time_embedding(timestep[:, None] / 1000)[:, :, None, None]
        return self.conv_out(self.down_blocks[0](x, text))


class SdxlUNet2DConditionModel(UNet2DConditionModel):
    """The class that networks.lokr and networks.loha know SDXL by."""

    def forward(self, x, timesteps, context):
        return super().forward(x, timesteps, context)


def build(kind):
    """(text encoders, U-Net) of "sd", "sdxl", "flux" or "anima"; the same weights for the same random state."""
    count = 2 if kind in {"sdxl", "flux"} else 1
    encoders = [CLIPTextModel() for _ in range(count)]
    block = {"flux": DoubleStreamBlock, "anima": Block}.get(kind, Transformer2DModel)
    unet = SdxlUNet2DConditionModel() if kind == "sdxl" else UNet2DConditionModel(block)
    for model in (*encoders, unet):
        model.requires_grad_(False)
    return encoders, unet


def random_data(count=8, size=8):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, 4, size, size, generator=generator)
    return torch.utils.data.TensorDataset(latents, torch.randint(WORDS, (count, 5), generator=generator))


def example(encoder, timestep):
    """What the U-Net is called with: two images at one timestep."""
    data = random_data(2)[:]
    return data[0], torch.full((2,), timestep), encoder(data[1])
