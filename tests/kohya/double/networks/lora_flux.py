"""One rate a text encoder, T5's if asked for; regular expressions (`network_reg_lrs`) have groups of their own."""

from networks.lora import LoRAModule
from networks.network_base import Network, by_pattern, described, first_given, functions, groups


class LoRANetwork(Network):
    adapter = LoRAModule
    unet_blocks = {"DoubleStreamBlock", "SingleStreamBlock"}

    def setup(self, text_encoder, unet, options):
        self.patterns = by_pattern(options.get("network_reg_lrs"))
        self.t5 = options.get("train_t5xxl") == "True"

    def prefixes(self, several):
        return ("lora_te1", "lora_te3") if self.t5 else ("lora_te1",)  # CLIP-L and T5

    def prepare_optimizer_params_with_multiple_te_lrs(self, text_encoder_lr, unet_lr, default_lr):
        given = [text_encoder_lr] if isinstance(text_encoder_lr, float | int) else text_encoder_lr or [default_lr]
        given = list(given) * 2 if len(given) == 1 else given
        self.requires_grad_(True)
        result, descriptions = [], []
        for i, (prefix, rate) in enumerate(zip(self.prefixes(True), given, strict=False)):
            found = self.encoder_groups(rate, prefix, self.patterns)
            result += groups(found)
            descriptions += [f"textencoder {i + 1} " + (f" {word}" if word else "") for _, word in found]  # two spaces
        unet = self.unet_groups(first_given(unet_lr, default_lr), self.patterns)
        return result + groups(unet), descriptions + described("unet", unet)


create_network, create_network_from_weights = functions(LoRANetwork)
