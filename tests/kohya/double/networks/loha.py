"""Branch feat-support-lokr-loha: LoRA+ for hada_w2_a; for the rest see lokr.py."""

import torch
from networks.lokr import BranchNetwork
from networks.network_base import Adapter, functions
from torch import nn
from torch.nn import functional


class LoHaModule(Adapter):
    def build(self, inputs, outputs, dim):
        for pair, first in (("hada_w1", torch.randn), ("hada_w2", torch.zeros)):
            setattr(self, f"{pair}_a", nn.Parameter(first(outputs, dim)))
            setattr(self, f"{pair}_b", nn.Parameter(torch.randn(dim, inputs)))

    def delta(self, x):
        return functional.linear(x, (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b))

    @staticmethod
    def dim_of(weight):
        return weight("hada_w1_b").shape[0]


class LoHaNetwork(BranchNetwork):
    adapter = LoHaModule


create_network, create_network_from_weights = functions(LoHaNetwork)
