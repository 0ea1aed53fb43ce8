"""Groups with a list of lora_up alone, without names, without lr where no unet_lr is set, and no descriptions."""

from networks.lora import LoRAModule
from networks.network_base import Network, functions


class LoRANetwork(Network):
    adapter = LoRAModule

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr, default_lr):
        self.requires_grad_(True)
        groups = []
        for adapters, rate in ((self.text_encoder_loras, text_encoder_lr), (self.unet_loras, unet_lr)):
            if adapters:
                group = {"params": [adapter.lora_up.weight for adapter in adapters]}
                groups.append(group if rate is None else {**group, "lr": rate})
        return groups


create_network, create_network_from_weights = functions(LoRANetwork)
