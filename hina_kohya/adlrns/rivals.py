"""What `hina-kohya adlrns run` compares with, on a Sequential of Linear layers: DyLoRA's truncation and RaNA's masks.

Written from the papers' ideas, not their code, and on this task only: arXiv 2210.07558 and 2503.18216.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compression import factors


class _Pair(nn.Module):
    """A Linear as up @ down of `rank`, the best of it for the inputs x [N, in]; `spent`: MACs of the last forward."""

    def __init__(self, layer: nn.Linear, x: Tensor, rank: int):
        super().__init__()
        x, identity = x.double(), torch.eye(layer.out_features, dtype=torch.float64)
        down, up = factors(layer.weight.detach().double(), x.T @ x / len(x), identity)
        self.down, self.up = nn.Parameter(down[:rank].float()), nn.Parameter(up[:, :rank].float())
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.spent = 0.0


class Prefix(_Pair):
    """The first `rank` directions, or all."""

    rank: int | None = None

    def forward(self, x: Tensor) -> Tensor:
        rank = self.rank or len(self.down)
        self.spent = float(len(x) * rank * (self.down.shape[1] + len(self.up)))
        return F.linear(F.linear(x, self.down[:rank]), self.up[:, :rank], self.bias)


class Masked(_Pair):
    """Only directions whose contribution h_i^2 |u_i|^2 to this sample is above one threshold; half of them on x.

    MACs are counted as if the others were never multiplied by `up`; here they are, as the mask differs by sample.
    """

    def __init__(self, layer: nn.Linear, x: Tensor, rank: int):
        super().__init__(layer, x, rank)
        self.threshold = self._size(F.linear(x, self.down)).detach().flatten().median()

    def _size(self, hidden: Tensor) -> Tensor:
        return (hidden * self.up.norm(dim=0)).square()

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.down)
        mask = self._size(hidden) > self.threshold
        self.spent = float(len(x) * self.down.numel() + mask.sum() * len(self.up))
        return F.linear(hidden * mask, self.up, self.bias)


class Rival(nn.Sequential):
    @property
    def pairs(self) -> list[_Pair]:
        return [layer for layer in self if isinstance(layer, _Pair)]

    @property
    def spent(self) -> float:
        return sum(pair.spent for pair in self.pairs)


class Truncated(Rival):
    """DyLoRA: in training a prefix of random length, the same in every layer; otherwise the first `rank` directions."""

    def __init__(self, model: nn.Sequential, x: Tensor, ranks: list[int], seed: int):
        super().__init__(*_layers(model, x, lambda layer, x: Prefix(layer, x, max(ranks))))
        self.ranks, self.random = ranks, torch.Generator().manual_seed(seed)

    def set_rank(self, rank: int) -> None:
        for pair in self.pairs:
            assert isinstance(pair, Prefix)
            pair.rank = rank

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.set_rank(self.ranks[int(torch.randint(len(self.ranks), (1,), generator=self.random))])
        return super().forward(input)


def masked(model: nn.Sequential, x: Tensor, rank: int) -> Rival:
    """RaNA-like, at the MACs of a static `rank`: more directions, of which a sample uses half."""

    def pair(layer: nn.Linear, x: Tensor) -> Masked:
        inputs, outputs = layer.in_features, layer.out_features
        return Masked(layer, x, min(inputs, outputs, int((inputs + outputs) * rank / (inputs + outputs / 2))))

    return Rival(*_layers(model, x, pair)).eval()


def _layers(model: nn.Sequential, x: Tensor, pair: Callable[[nn.Linear, Tensor], nn.Module]) -> list[nn.Module]:
    """Each Linear replaced by `pair(layer, its inputs)`, which are those of the dense model."""
    made = []
    with torch.no_grad():
        for layer in model:
            made.append(pair(layer, x) if isinstance(layer, nn.Linear) else layer)
            x = layer(x)
    return made
