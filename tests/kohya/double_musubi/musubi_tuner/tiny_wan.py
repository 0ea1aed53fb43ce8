"""Base model of the double: random weights, the class names that networks look for, and Wan's way of being called."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, CHANNELS, WORDS = 32, 4, 16


class WanSelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, context):
        return self.o(functional.scaled_dot_product_attention(self.q(x), self.k(context), self.v(context)))


class WanAttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn, self.cross_attn = WanSelfAttention(), WanSelfAttention()
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x, context):
        normal = self.norm1(x)
        x = x + self.self_attn(normal, normal)
        x = x + self.cross_attn(x, context)
        return x + self.ffn(self.norm2(x))


class WanModel(nn.Module):
    """Latents [N, C, F, H, W], timesteps [N] from 0 to 1000 and texts [L, WIDTH]; a list of N predictions."""

    def __init__(self):
        super().__init__()
        self.patch_embedding, self.head = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.time_embedding = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList([WanAttentionBlock(), WanAttentionBlock()])
        self.checkpoints = self.swaps_for_inference = False

    def switch_block_swap_for_inference(self):
        assert not self.swaps_for_inference
        self.swaps_for_inference = True

    def switch_block_swap_for_training(self):
        self.swaps_for_inference = False

    def enable_gradient_checkpointing(self, cpu_offload=False):
        self.checkpoints = True

    def forward(self, x, t, context, seq_len, clip_fea=None, y=None):
        shape = x.shape
        tokens = self.patch_embedding(x.flatten(2).transpose(1, 2)) + self.time_embedding(t[:, None] / 1000)[:, None]
        context = torch.stack(context)
        for block in self.blocks:
            if self.checkpoints and self.training:
                tokens = torch.utils.checkpoint.checkpoint(block, tokens, context, use_reentrant=False)
            else:
                tokens = block(tokens, context)
        return list(self.head(tokens).transpose(1, 2).reshape(shape).float())


def build():
    torch.manual_seed(1)
    return WanModel()


class Cached(torch.utils.data.Dataset):
    """Latents and text encoder outputs, as if cached; a batch is a dictionary."""

    def __init__(self, count=8, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.latents = torch.randn(count, CHANNELS, 1, 4, 4, generator=generator)
        self.texts = torch.randn(count, 5, WIDTH, generator=generator)

    def __len__(self):
        return len(self.latents)

    def __getitem__(self, index):
        return {"latents": self.latents[index], "t5": self.texts[index], "timesteps": None}


def collate(items):
    return {
        "latents": torch.stack([each["latents"] for each in items]),
        "t5": [each["t5"] for each in items],
        "timesteps": None,
    }
