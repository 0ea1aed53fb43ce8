"""Double of musubi-tuner's networks/lokr.py: Kronecker products, whichever architecture it is."""

import torch
from torch import nn

from musubi_tuner.networks import lora
from musubi_tuner.networks.lora_wan import BLOCKS, EXCLUDED


class LoKrModule(lora.LoRAModule):
    def build(self, inputs, outputs, dim, factor=-1):
        (out_l, out_k), (in_m, in_n) = split(outputs, factor), split(inputs, factor)
        self.lokr_w1 = nn.Parameter(torch.empty(out_l, in_m))
        nn.init.kaiming_uniform_(self.lokr_w1)
        self.product = dim < max(out_k, in_n) / 2
        if self.product:
            self.lokr_w2_a, self.lokr_w2_b = nn.Parameter(torch.empty(out_k, dim)), nn.Parameter(torch.zeros(dim, in_n))
            nn.init.kaiming_uniform_(self.lokr_w2_a)
        else:
            self.lokr_w2 = nn.Parameter(torch.zeros(out_k, in_n))
            self.scale = 1.0
            self.alpha.fill_(dim)

    def weight(self):
        return torch.kron(self.lokr_w1, self.lokr_w2_a @ self.lokr_w2_b if self.product else self.lokr_w2)


def split(size, factor):
    """Two factors of a size, the smaller one first."""
    small = (
        factor if factor > 0 and size % factor == 0 else max(i for i in range(1, int(size**0.5) + 1) if size % i == 0)
    )
    return sorted((small, size // small))


def create_arch_network(
    multiplier, network_dim, network_alpha, vae, text_encoders, unet, neuron_dropout=None, **kwargs
):
    factor = int(kwargs.pop("factor", -1))
    kwargs["exclude_patterns"] = [EXCLUDED]
    return lora.create_network(
        BLOCKS, "lora_unet", multiplier, network_dim, network_alpha, vae, text_encoders, unet,
        neuron_dropout=neuron_dropout, module_class=LoKrModule, module_kwargs={"factor": factor}, **kwargs,
    )  # fmt: skip
