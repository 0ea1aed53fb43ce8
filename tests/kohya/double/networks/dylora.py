"""Groups {params: dict.values(), lr} without descriptions; one rank a step is trained, the others have no gradient."""

import random

import torch
from networks.network_base import Adapter, Network, first_given, functions, groups
from torch import nn
from torch.nn import functional


class DyLoRAModule(Adapter):
    def build(self, inputs, outputs, dim):
        self.lora_A = nn.ParameterList([torch.randn(1, inputs) / inputs**0.5 for _ in range(dim)])
        self.lora_B = nn.ParameterList([torch.zeros(outputs, 1) for _ in range(dim)])

    def delta(self, x):
        trained = random.randrange(self.lora_dim)
        for rows in (self.lora_A, self.lora_B):
            for i, row in enumerate(rows):
                row.requires_grad_(i == trained)
        return functional.linear(functional.linear(x, torch.cat(tuple(self.lora_A))), torch.cat(tuple(self.lora_B), 1))

    @staticmethod
    def dim_of(weight):
        return next(i for i in range(1000) if weight(f"lora_A.{i}") is None)


class DyLoRANetwork(Network):
    adapter = DyLoRAModule
    plus = ("lora_B",)

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        self.requires_grad_(True)
        encoders = self.encoder_groups(first_given(text_encoder_lr, default_lr))
        return groups(encoders + self.unet_groups(first_given(unet_lr, default_lr)))


create_network, create_network_from_weights = functions(DyLoRANetwork)
