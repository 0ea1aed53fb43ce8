"""What the networks of the double share: adapters that take over a layer's forward, and the forms of parameter groups.

The contract is each module's own: which of these forms it returns is said in its file (SD_SCRIPTS.md, section 6).
"""

import logging
import re

import torch
from safetensors.torch import load_file, save_file
from torch import nn

logger = logging.getLogger(__name__)

TEXT_ENCODER_BLOCKS = {"CLIPAttention", "CLIPSdpaAttention", "CLIPMLP"}
RATIOS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


class Adapter(nn.Module):
    """Adds `delta(x)` to a linear layer. The layer is no child of it once it is on the model, so it is not saved."""

    def __init__(self, lora_name, layer, dim, alpha, **options):
        super().__init__()
        self.lora_name, self.org_module, self.lora_dim = lora_name, layer, dim
        self.scale = alpha / dim
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.build(layer.in_features, layer.out_features, dim, **options)

    def apply_to(self):
        self.org_forward = self.org_module.forward
        self.org_module.forward = self.forward
        del self.org_module

    def forward(self, x):
        return self.org_forward(x) + self.delta(x) * self.scale


class Network(nn.Module):
    adapter: type[Adapter]
    unet_prefix, unet_blocks = "lora_unet", {"Transformer2DModel"}
    plus = ("lora_up",)  # what LoRA+ looks for in a name

    def __init__(self, text_encoder, unet, dim, alpha, dims=None, alphas=None, **options):
        super().__init__()
        for name in RATIOS:
            ratio = options.pop(name, None)
            setattr(self, name, None if ratio is None else float(ratio))
        known = {name: options[name] for name in getattr(self, "adapter_options", ()) if name in options}
        self.setup(text_encoder, unet, options)

        def adapters(prefix, model, blocks):
            found = []
            for name, block in model.named_modules():
                if type(block).__name__ in blocks:
                    layers = [(child, layer) for child, layer in block.named_modules() if type(layer) is nn.Linear]
                    names = [f"{prefix}.{name}.{child}".replace(".", "_") for child, _ in layers]
                    ranks = [dim if dims is None else dims.get(each) for each in names]
                    found += [
                        self.adapter(each, layer, rank, (alphas or {}).get(each) or alpha or rank, **known)
                        for each, (_, layer), rank in zip(names, layers, ranks, strict=True)
                        if rank
                    ]
            return found

        encoders = text_encoder if isinstance(text_encoder, list) else [text_encoder]
        prefixes = self.prefixes(isinstance(text_encoder, list))
        pairs = zip(prefixes, encoders, strict=False)
        self.text_encoder_loras = [each for prefix, te in pairs for each in adapters(prefix, te, TEXT_ENCODER_BLOCKS)]
        self.unet_loras = adapters(self.unet_prefix, unet, self.unet_blocks)

    def setup(self, text_encoder, unet, options):
        """For the network arguments that one module alone knows; the unknown ones are ignored."""

    def prefixes(self, several):
        return ("lora_te1", "lora_te2") if several else ("lora_te",)

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        self.text_encoder_loras = self.text_encoder_loras if apply_text_encoder else []
        self.unet_loras = self.unet_loras if apply_unet else []
        for adapter in self.text_encoder_loras + self.unet_loras:
            adapter.apply_to()
            self.add_module(adapter.lora_name, adapter)

    def assemble(self, adapters, rate, ratio, patterns=()):
        """[({"params": dict.values(), "lr": ...}, description)]: first the regular expressions' groups, plus last."""
        found = {}
        for adapter in adapters:
            regex = next((i for i, (pattern, _) in enumerate(patterns) if re.search(pattern, adapter.lora_name)), None)
            for name, param in adapter.named_parameters():
                plus = ratio is not None and any(mark in name for mark in self.plus)
                found.setdefault((regex is None, regex or 0, plus), {})[f"{adapter.lora_name}.{name}"] = param
        result = []
        for (default, regex, plus), params in sorted(found.items(), key=lambda item: item[0]):
            own = rate if default else patterns[regex][1]
            own = own * ratio if plus and own is not None else own
            if not own:
                logger.info("NO LR skipping!")
                continue
            words = [f"reg_lr_{regex}"] * (not default) + ["plus"] * plus
            result.append(({"params": params.values(), "lr": own}, " ".join(words)))
        return result

    def encoder_groups(self, rate, prefix="lora_te", patterns=()):
        adapters = [adapter for adapter in self.text_encoder_loras if adapter.lora_name.startswith(prefix)]
        return self.assemble(adapters, rate, self.loraplus_text_encoder_lr_ratio or self.loraplus_lr_ratio, patterns)

    def unet_groups(self, rate, patterns=()):
        return self.assemble(self.unet_loras, rate, self.loraplus_unet_lr_ratio or self.loraplus_lr_ratio, patterns)

    def enable_gradient_checkpointing(self):
        pass

    def prepare_grad_etc(self, text_encoder, unet):
        self.requires_grad_(True)

    def on_epoch_start(self, text_encoder, unet):
        self.train()

    def get_trainable_params(self):
        return self.parameters()

    def save_weights(self, file, dtype, metadata):
        save_file({key: value.detach().to("cpu", dtype, copy=True) for key, value in self.state_dict().items()},
                  file, metadata or {})  # fmt: skip

    def load_weights(self, file):
        return self.load_state_dict(load_file(file), strict=False)


def described(start, found):
    """Descriptions as most networks put them together: a word, and the rest after a space."""
    return [f"{start} {description}".strip() for _, description in found]


def groups(found):
    return [group for group, _ in found]


def first_given(*rates):
    return next((rate for rate in rates if rate is not None), None)


def by_pattern(text):
    """`network_reg_lrs`: pattern=rate, separated by commas."""
    pairs = [pair.split("=", 1) for pair in text.split(",")] if text else []
    return [(pattern, float(rate)) for pattern, rate in pairs]


def functions(network):
    """create_network and create_network_from_weights of a module."""

    def create_network(multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs):
        return network(text_encoder, unet, network_dim or 4, network_alpha or 1.0, **kwargs)

    def create_network_from_weights(
        multiplier, file, vae, text_encoder, unet, weights_sd=None, for_inference=False, **kwargs
    ):
        weights_sd = weights_sd or load_file(file)
        modules = {key.split(".", 1)[0] for key in weights_sd}
        dims = {
            name: network.adapter.dim_of(lambda end, name=name: weights_sd.get(f"{name}.{end}")) for name in modules
        }
        alphas = {name: float(weights_sd[f"{name}.alpha"]) for name in modules if f"{name}.alpha" in weights_sd}
        return network(text_encoder, unet, None, None, dims=dims, alphas=alphas, **kwargs), weights_sd

    return create_network, create_network_from_weights
