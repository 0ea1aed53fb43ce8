"""Two ways of others to make a factored network dynamic: a prefix of any rank (DyLoRA), and routed directions (RaNA).

Both are made of a network of `static_ranks`, from the papers' ideas, not their code. `macs()`: of a sample of the last
batch.
"""

import copy
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prefix(nn.Module):
    """The first ``use`` of a pair's directions."""

    def __init__(self, first: nn.Linear, second: nn.Linear):
        super().__init__()
        self.first, self.second, self.rank = first, second, first.out_features
        self.use = self.rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.first.weight[: self.use]), self.second.weight[:, : self.use], self.second.bias)

    def macs(self) -> float:
        return self.use * (self.first.in_features + self.second.out_features)


class Router(nn.Module):
    """B (mask * A x) + b with the directions whose part of the output, |B_i|^2 (A x)_i^2, is above a threshold.

    A is computed whole, as it decides; only B is spared: half of what a static ``rank`` has on average, which pays for
    the further directions of A. RaNA (arXiv 2503.18216) does this with thresholds of its own; here it is the quantile
    with which the mean cost is that of the static rank. Masked here; `macs` counts what the kept directions need.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear, rank: int):
        """A pair with at least as many directions, the best first."""
        super().__init__()
        into, out = first.in_features, second.out_features
        most = min(first.out_features, rank + round(rank / 2 * out / into))
        self.keep = (rank * (into + out) - most * into) / out
        self.first = nn.Linear(into, most, bias=False)
        self.second = nn.Linear(most, out)
        with torch.no_grad():
            self.first.weight.copy_(first.weight[:most])
            self.second.weight.copy_(second.weight[:, :most])
            self.second.bias.copy_(second.bias)
        self.fitting, self.threshold, self.kept = False, 0.0, math.nan

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        part = hidden.square() * self.second.weight.square().sum(0)
        if self.fitting:
            values = part.detach().flatten().sort().values
            self.threshold = float(values[min(int((1 - self.keep / hidden.shape[1]) * len(values)), len(values) - 1)])
        mask = part >= self.threshold
        self.kept = float(mask.sum()) / len(x)
        return self.second(hidden * mask)

    def macs(self) -> float:
        return self.first.weight.numel() + self.kept * self.second.out_features


class Truncated(nn.Sequential):
    """DyLoRA (arXiv 2210.07558): in training a prefix of random length, the same in every layer; otherwise `cut`'s."""

    def __init__(self, model: nn.Sequential, seed: int):
        super().__init__(*_replaced(model, Prefix))
        self.pairs: list[Prefix] = [layer for layer in self if isinstance(layer, Prefix)]
        self.random = torch.Generator().manual_seed(seed)

    def cut(self, rank: int) -> None:
        for pair in self.pairs:
            pair.use = rank

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.cut(int(torch.randint(1, self.pairs[0].rank + 1, (), generator=self.random)))
        return super().forward(input)

    def macs(self) -> float:
        return sum(pair.macs() for pair in self.pairs)


class Routed(nn.Sequential):
    """RaNA-like, at the MACs of a static ``rank``; ``model`` has as many directions as there can be."""

    def __init__(self, model: nn.Sequential, rank: int):
        super().__init__(*_replaced(model, lambda first, second: Router(first, second, rank)))
        self.routers: list[Router] = [layer for layer in self if isinstance(layer, Router)]

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Thresholds, layer after layer, each with what really comes in."""
        for fitting in (True, False):
            for router in self.routers:
                router.fitting = fitting
            if fitting:
                self(x)

    def macs(self) -> float:
        return sum(router.macs() for router in self.routers)


def _replaced(model: nn.Sequential, make: Callable[..., nn.Module]) -> list[nn.Module]:
    """make: of a pair's two Linear layers"""
    return [make(*child) if isinstance(child, nn.Sequential) else child for child in copy.deepcopy(model)]
