"""One group with a list of the U-Net's parameters, without names, and no descriptions."""

import torch
from networks.network_base import Adapter, Network, functions
from torch import nn
from torch.nn import functional


class OFTModule(Adapter):
    """Turns the output rows of the weight, block by block, by the Cayley transform of a skew-symmetric matrix."""

    def build(self, inputs, outputs, dim):
        self.oft_blocks = nn.Parameter(torch.zeros(dim, outputs // dim, outputs // dim))

    def apply_to(self):
        self.org_modules = [self.org_module]
        super().apply_to()

    def forward(self, x):
        skew = self.oft_blocks - self.oft_blocks.transpose(1, 2)
        one = torch.eye(skew.shape[-1])
        turn = (one + skew) @ torch.linalg.inv(one - skew)
        layer = self.org_modules[0]
        weight = torch.einsum("knm,knp->kmp", turn, layer.weight.reshape(*turn.shape[:2], -1))
        return functional.linear(x, weight.reshape(layer.weight.shape), layer.bias)

    @staticmethod
    def dim_of(weight):
        return weight("oft_blocks").shape[0]


class OFTNetwork(Network):
    adapter = OFTModule
    unet_prefix, unet_blocks = "oft_unet", {"CrossAttention"}

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        super().apply_to(text_encoder, unet, False, apply_unet)

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        self.requires_grad_(True)
        group = {"params": [param for adapter in self.unet_loras for param in adapter.parameters()]}
        return [group if unet_lr is None else {**group, "lr": unet_lr}]


create_network, create_network_from_weights = functions(OFTNetwork)
