"""`hina-kohya adlrns run` with the methods of others, and with ADLRNS whose parts are off, one at a time.

dylora  : trained on prefixes of random length, then cut
rana    : more directions, of which each sample uses those that contribute most
one-cell: dynamic without the cells; no-means: without the means for what is left out; one-rank: without the water
          level, so that every cell has the mean rank
"""

import argparse
import copy
import sys
from typing import Any

from hina_kohya.adlrns.layer.compression import compress
from hina_kohya.adlrns.layer.running import SIZE, Comparison, compare
from hina_kohya.adlrns.layer.static import static_ranks

from .rivals import Routed, Truncated

EXAMPLE = """examples:
  python -m benchmarks.adlrns.comparison --config configs/adlrns/patches.toml -o runs/adlrns
  python -m benchmarks.adlrns.comparison --config configs/adlrns/patches.toml --methods rana dynamic --budgets 10"""


class Everything(Comparison):
    methods = ("static", "dylora", "rana", "one-cell", "no-means", "one-rank", "dynamic")

    def trained(self) -> int:
        return super().trained() + self.on["dylora"]

    def once(self) -> None:
        super().once()
        if self.on["dylora"]:
            model = Truncated(static_ranks(self.dense, self.calibration, max(self.args.ranks)), self.args.seed).train()
            self.tune("DyLoRA", model)
            for rank in self.args.ranks:
                model.cut(rank)
                self.add("DyLoRA, cut", f"rank {rank}", model)
        if self.on["rana"]:
            most = min(SIZE, self.args.width)
            whole = static_ranks(self.dense, self.calibration, most, two_sided=False)
            for rank in self.args.ranks:
                routed = Routed(whole, rank)
                routed.fit(self.train.noisy)
                self.add("RaNA-like", f"rank {rank}", routed)

    def at(self, budget: float) -> None:
        size = f"{budget:g} %"
        if self.on["one-cell"]:
            self.add("dynamic without cells", size, compress(self.dense, self.calibration, budget, cells=1))
        if self.on["no-means"] or self.on["one-rank"]:
            model = compress(self.dense, self.calibration, budget)
            if self.on["no-means"]:
                self.add("dynamic without means", size, without_means(copy.deepcopy(model)))
            if self.on["one-rank"]:
                self.add("dynamic without water level", size, with_one_rank(model))
        super().at(budget)


def without_means(model: Any) -> Any:
    """The same `CompressedModel`; what a cell leaves out is left out."""
    for layer in model.layers.values():
        layer.shift.data.zero_()
        layer.bias.data[:] = layer.bias.data[-1]  # the bias of the layer itself
    return model


def with_one_rank(model: Any) -> Any:
    """The same `CompressedModel`; each layer's mean rank in every cell."""
    for layer in model.layers.values():
        mean = float((layer.ranks[:-1].double() * layer.share).sum() / layer.share.sum())
        layer.ranks[:-1] = int(mean)
        layer._plans.clear()
    return model


def main(argv: list[str]) -> int:
    about = (
        "Patch denoising on scikit-learn's sample images: PSNR against multiply-adds, of ADLRNS, of ADLRNS with parts "
        "of it off, of static ranks, and of methods of others."
    )
    prog = "python -m benchmarks.adlrns.comparison"
    return compare(argv, argparse.ArgumentParser, Everything, prog, about, EXAMPLE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
