"""Two ways of others to make a factored Linear dynamic: a prefix of any rank (DyLoRA), and routed directions (RaNA)."""

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
        """Of a sample of the last batch."""
        return self.first.weight.numel() + self.kept * self.second.out_features


@torch.no_grad()
def fit_thresholds(model: nn.Module, x: Tensor) -> None:
    """Layer after layer, each with what really comes in."""
    layers = [layer for layer in model.modules() if isinstance(layer, Router)]
    for fitting in (True, False):
        for layer in layers:
            layer.fitting = fitting
        if fitting:
            model(x)


def prefixes(model: nn.Module) -> nn.Module:
    """A copy of a network of `static_ranks`."""
    return _replaced(model, Prefix)


def routers(model: nn.Module, rank: int) -> nn.Module:
    return _replaced(model, lambda first, second: Router(first, second, rank))


def _replaced(model: nn.Module, make: Callable[..., nn.Module]) -> nn.Module:
    model = copy.deepcopy(model)
    for name, child in list(model.named_children()):
        if isinstance(child, nn.Sequential) and len(child) == 2:
            setattr(model, name, make(*child))
    return model
