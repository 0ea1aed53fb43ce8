"""What a model with dynamic layers costs, and one budget shared out among them."""

import dataclasses as dc
from typing import Any

import torch
from torch import Tensor, nn

from .module import DynamicLowRankLayer

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dc.dataclass(frozen=True)
class Costs:
    """Multiply-adds of one sample in all Linear and convolution layers of a model.

    layers : each dynamic layer, with those of its dense counterpart
    fixed  : of all other layers
    apart  : of ``fixed``, what a budget in percent does not count
    """

    layers: list[tuple[DynamicLowRankLayer, float]]
    fixed: float
    apart: float

    @property
    def dense(self) -> float:
        """What a budget of 100 percent is."""
        return self.fixed - self.apart + sum(macs for _, macs in self.layers)

    @property
    def least(self) -> float:
        """At r_min, with the fixed part."""
        return self.fixed + sum(macs * layer.least_budget / 100 for layer, macs in self.layers)

    @property
    def most(self) -> float:
        """At r_max, with the fixed part."""
        return self.fixed + sum(m * layer.r_max * layer.direction_macs / layer.dense_macs for layer, m in self.layers)

    def of_percent(self, budget: float) -> float:
        """Multiply-adds that a budget in percent buys, with the fixed part."""
        return self.apart + budget / 100 * self.dense

    def percent(self, macs: float) -> float:
        return 100 * (macs - self.apart) / self.dense

    @property
    def planned(self) -> float:
        """Mean over the calibration samples at the present ranks, with the fixed part."""
        return self.fixed + sum(macs * layer.planned / 100 for layer, macs in self.layers)

    def spend(self, macs: float) -> None:
        """Set the layers' budgets for a total of ``macs``, a mean over the samples. All layers get the same mean rank,
        from r_min up to full. (In patch denoising, the same percentage of its own multiply-adds for each was up to
        0.6 dB worse.) To refuse what is below `least` is the caller's part."""
        price = [total * layer.direction_macs / layer.dense_macs for layer, total in self.layers]

        def ranks(common: float) -> list[float]:
            return [min(max(common, layer.r_min), layer.full_rank) for layer, _ in self.layers]

        low, high = 0.0, float(max(layer.full_rank for layer, _ in self.layers))
        while high - low > 1e-9:
            middle = (low + high) / 2
            fits = sum(rank * each for rank, each in zip(ranks(middle), price, strict=True)) <= macs - self.fixed
            low, high = (middle, high) if fits else (low, middle)
        for rank, (layer, _) in zip(ranks(low), self.layers, strict=True):
            layer.set_budget(rank * layer.direction_macs * 100 / layer.dense_macs * (1 + 1e-9))


@torch.no_grad()
def costs(model: nn.Module, x: Tensor, **side: Any) -> Costs:
    """Counted in a forward of a batch, in eval mode; a budget in percent is of the dynamic layers'."""
    modules = [m for m in model.modules() if isinstance(m, (DynamicLowRankLayer, *PLAIN))]
    total: dict[nn.Module, float] = dict.fromkeys(modules, 0.0)

    def hook(module: nn.Module, _args: object, output: object) -> None:
        y = output[0] if isinstance(output, tuple) else output
        assert isinstance(y, Tensor)
        if isinstance(module, DynamicLowRankLayer):
            total[module] += y.numel() // module.out_features * module.dense_macs / len(x)
        else:
            weight = module.weight
            assert isinstance(weight, Tensor)
            total[module] += y.numel() // len(weight) * weight.numel() / len(x)

    handles = [module.register_forward_hook(hook) for module in modules]
    training = model.training
    try:
        model.eval()(x, **side)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    layers = [(m, total[m]) for m in modules if isinstance(m, DynamicLowRankLayer) and total[m]]
    fixed = sum(macs for m, macs in total.items() if not isinstance(m, DynamicLowRankLayer))
    return Costs(layers, fixed, apart=fixed)
