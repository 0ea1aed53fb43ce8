"""Groups {params: dict.values(), lr} with descriptions; one group a block where block weights are given."""

import re

from networks.network_base import Adapter, Network, described, first_given, functions, groups
from torch import nn

DOWN = 12  # weights for as many down blocks; the middle block's comes after them


class LoRAModule(Adapter):
    def build(self, inputs, outputs, dim):
        self.lora_down, self.lora_up = nn.Linear(inputs, dim, bias=False), nn.Linear(dim, outputs, bias=False)
        nn.init.zeros_(self.lora_up.weight)

    def delta(self, x):
        return self.lora_up(self.lora_down(x))

    @staticmethod
    def dim_of(weight):
        return weight("lora_down.weight").shape[0]


class LoRANetwork(Network):
    adapter = LoRAModule

    def setup(self, text_encoder, unet, options):
        weights = [options.get(f"{part}_lr_weight") for part in ("down", "mid", "up")]
        self.block_weights = None
        if any(weights):
            sizes = (DOWN, 1, DOWN)
            given = [text.split(",") if text else ["1"] * size for text, size in zip(weights, sizes, strict=True)]
            self.block_weights = [float(weight or 0) for part in given for weight in part]

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        self.requires_grad_(True)
        encoders = self.encoder_groups(first_given(text_encoder_lr, default_lr))
        unet, descriptions = self._unet(first_given(unet_lr, default_lr))
        return groups(encoders + unet), described("textencoder", encoders) + descriptions

    def _unet(self, rate):
        if not self.block_weights:
            found = self.unet_groups(rate)
            return found, described("unet", found)
        blocks, result, descriptions = {}, [], []
        for adapter in self.unet_loras:
            blocks.setdefault(block_index(adapter.lora_name), []).append(adapter)
        for index, adapters in blocks.items():
            ratio = self.loraplus_unet_lr_ratio or self.loraplus_lr_ratio
            found = self.assemble(adapters, rate * self.block_weights[index], ratio)
            result += found
            descriptions += described(f"unet_block{index}", found)
        return result, descriptions


def block_index(name):
    found = re.search(r"(down|up)_blocks_(\d+)_(?:resnets|attentions)_(\d+)", name)
    if not found:
        return DOWN
    part, i, j = found[1], int(found[2]), int(found[3])
    return 3 * i + j + 1 + (DOWN if part == "up" else 0)


create_network, create_network_from_weights = functions(LoRANetwork)
