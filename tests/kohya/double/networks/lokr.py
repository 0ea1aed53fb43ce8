"""Branch feat-support-lokr-loha: LoRA+ for lokr_w1, as many text encoder rates as given, SDXL and Anima alone."""

import torch
from networks.network_base import Adapter, Network, by_pattern, described, first_given, functions, groups
from torch import nn
from torch.nn import functional


def factors(size, factor):
    """(small, large), their product `size`; as near to each other as `factor`, if given, allows."""
    most = factor if factor > 0 else size
    if factor > 0 and size % factor == 0:
        return tuple(sorted((factor, size // factor)))
    small = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0 and n <= most)
    return small, size // small


class LoKrModule(Adapter):
    def build(self, inputs, outputs, dim, factor=-1):
        (m, n), (rows, k) = factors(inputs, int(factor)), factors(outputs, int(factor))
        self.lokr_w1 = nn.Parameter(torch.randn(rows, m) / m**0.5)
        if dim < max(k, n) / 2:
            self.lokr_w2_a, self.lokr_w2_b = nn.Parameter(torch.randn(k, dim)), nn.Parameter(torch.zeros(dim, n))
        else:
            self.lokr_w2, self.scale = nn.Parameter(torch.zeros(k, n)), 1.0

    def delta(self, x):
        w2 = self.lokr_w2 if hasattr(self, "lokr_w2") else self.lokr_w2_a @ self.lokr_w2_b
        return functional.linear(x, torch.kron(self.lokr_w1, w2))

    @staticmethod
    def dim_of(weight):
        low, whole = weight("lokr_w2_b"), weight("lokr_w2")
        return max(whole.shape) if low is None else low.shape[0]


class BranchNetwork(Network):
    """What loha.py shares with lokr.py."""

    plus = ("lora_up", "hada_w2_a", "lokr_w1")

    def setup(self, text_encoder, unet, options):
        classes = {type(module).__name__ for module in unet.modules()}
        if not classes & {"SdxlUNet2DConditionModel", "Block"}:
            raise ValueError("the architecture is neither SDXL nor Anima")
        self.unet_blocks = {"Transformer2DModel"} if "SdxlUNet2DConditionModel" in classes else {"Block"}
        self.patterns = by_pattern(options.get("network_reg_lrs"))

    def prepare_optimizer_params_with_multiple_te_lrs(self, text_encoder_lr, unet_lr, default_lr):
        given = [text_encoder_lr] if isinstance(text_encoder_lr, float | int) else text_encoder_lr or [default_lr]
        self.requires_grad_(True)
        result, descriptions = [], []
        for i, prefix in enumerate(self.prefixes(True)):
            found = self.encoder_groups(given[i] if i < len(given) else given[0], prefix, self.patterns)
            result += groups(found)
            descriptions += described(f"textencoder {i + 1}", found)
        unet = self.unet_groups(first_given(unet_lr, default_lr), self.patterns)
        return result + groups(unet), descriptions + described("unet", unet)


class LoKrNetwork(BranchNetwork):
    adapter = LoKrModule
    adapter_options = ("factor",)


create_network, create_network_from_weights = functions(LoKrNetwork)
