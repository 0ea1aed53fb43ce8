"""Adapters to compare with: one pair of factors a layer, of which a shared `Cut` says how much acts."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cut:
    """One a model. prefix: the first directions act; scale: [R] of each; ranks: [N], of each sample of the batch."""

    def __init__(self) -> None:
        self.prefix: int | None = None
        self.scale: Tensor | None = None
        self.ranks: Tensor | None = None


class Pair(nn.Module):
    """up @ down on a Linear or a 1x1 convolution, at scale 1; it takes the place of the layer's forward."""

    def __init__(self, layer: Any, rank: int, cut: Cut, random: torch.Generator):
        super().__init__()
        convolution = layer.weight.dim() > 2
        if layer.weight.shape[2:].numel() != 1:
            raise ValueError(f"kernel_size = {layer.kernel_size} of a convolution must be (1, 1)")
        self.product = F.conv2d if convolution else F.linear
        self.tail = (1, 1) if convolution else ()
        out, into = layer.weight.shape[:2]
        self.cut, self.rank = cut, rank
        bound = into**-0.5  # kaiming_uniform_ with a = sqrt(5), as every LoRA does it
        down = torch.empty(rank, into).uniform_(-bound, bound, generator=random)
        self.lora_down, self.lora_up = nn.Parameter(down), nn.Parameter(torch.zeros(out, rank))
        self.base = layer.forward
        layer.forward = self.forward

    def forward(self, x: Tensor) -> Tensor:
        cut, rank = self.cut, self.cut.prefix or self.rank
        hidden = self.product(x, self.lora_down[:rank].reshape(rank, -1, *self.tail))
        if cut.scale is not None:
            hidden = hidden * cut.scale[:rank].view(-1, *self.tail)
        if cut.ranks is not None:
            mask = torch.arange(rank) < cut.ranks[:, None]
            between = () if self.tail else (1,) * (x.dim() - 2)
            hidden = hidden * mask.view(len(mask), *between, rank, *self.tail)
        return self.base(x) + self.product(hidden, self.lora_up[:, :rank].reshape(-1, rank, *self.tail))


def add_pairs(layers: dict[str, Any], rank: int, cut: Cut, random: torch.Generator) -> list[Pair]:
    """Onto frozen layers; the names of parameters are those of LoRA."""
    return [Pair(layer, rank, cut, random) for layer in layers.values()]
