"""Double of musubi-tuner's networks/lora_wan.py: creators of one architecture, before those of networks/lora.py."""

import ast

from musubi_tuner.networks import lora

BLOCKS = ["WanAttentionBlock"]
EXCLUDED = r".*(patch_embedding|text_embedding|time_embedding|time_projection|norm|head).*"


def create_arch_network(
    multiplier, network_dim, network_alpha, vae, text_encoders, unet, neuron_dropout=None, **kwargs
):
    given = kwargs.get("exclude_patterns")
    kwargs["exclude_patterns"] = [*(ast.literal_eval(given) if given else []), EXCLUDED]
    return lora.create_network(
        BLOCKS, "lora_unet", multiplier, network_dim, network_alpha, vae, text_encoders, unet,
        neuron_dropout=neuron_dropout, **kwargs,
    )  # fmt: skip


def create_arch_network_from_weights(
    multiplier, weights_sd, text_encoders=None, unet=None, for_inference=False, **kwargs
):
    return lora.create_network_from_weights(
        BLOCKS, multiplier, weights_sd, text_encoders, unet, for_inference, **kwargs
    )
