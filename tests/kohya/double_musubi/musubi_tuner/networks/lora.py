"""Double of musubi-tuner's networks/lora.py: groups {params: dict.values(), lr} with descriptions, no text encoder."""

import ast
import re

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class LoRAModule(nn.Module):
    """Adds its product to a linear layer, which is no child of it once it is on the model."""

    def __init__(self, lora_name, layer, dim, alpha, **options):
        super().__init__()
        self.lora_name, self.org_module, self.org_module_ref = lora_name, layer, [layer]
        self.scale = float(alpha) / dim
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.build(layer.in_features, layer.out_features, dim, **options)

    def build(self, inputs, outputs, dim):
        self.lora_down, self.lora_up = nn.Linear(inputs, dim, bias=False), nn.Linear(dim, outputs, bias=False)
        nn.init.zeros_(self.lora_up.weight)

    def weight(self):
        return self.lora_up.weight @ self.lora_down.weight

    def apply_to(self):
        self.org_forward = self.org_module.forward
        self.org_module.forward = self.forward
        del self.org_module

    def forward(self, x):
        return self.org_forward(x) + nn.functional.linear(x, self.weight()) * self.scale


class LoRANetwork(nn.Module):
    def __init__(self, blocks, unet, dim, alpha, kind, dims=None, alphas=None, exclude=(), **options):
        super().__init__()
        self.loraplus_lr_ratio = None
        self.text_encoder_loras, self.unet_loras = [], []
        for name, block in unet.named_modules():
            for child, layer in block.named_modules() if type(block).__name__ in blocks else ():
                path = f"{name}.{child}"
                if type(layer) is not nn.Linear or any(re.match(pattern, path) for pattern in exclude):
                    continue
                lora_name = f"lora_unet_{path}".replace(".", "_")
                rank = dim if dims is None else dims.get(lora_name)
                if rank:
                    own = alpha if alphas is None else alphas[lora_name]
                    self.unet_loras.append(kind(lora_name, layer, rank, own, **options))

    def prepare_network(self, args):
        pass

    def apply_to(self, text_encoders, unet, apply_text_encoder=True, apply_unet=True):
        self.unet_loras = self.unet_loras if apply_unet else []
        if not self.unet_loras:
            raise RuntimeError("No LoRA modules found")
        for lora in self.unet_loras:
            lora.apply_to()
            self.add_module(lora.lora_name, lora)

    @torch.no_grad()
    def merge_to(self, text_encoders, unet, weights_sd, dtype=None, device=None):
        for lora in self.unet_loras:
            own = {
                key.partition(".")[2]: value
                for key, value in weights_sd.items()
                if key.startswith(lora.lora_name + ".")
            }
            lora.load_state_dict(own, strict=False)  # the layer is a child until `apply_to`
            lora.org_module_ref[0].weight += lora.weight() * lora.scale

    def prepare_optimizer_params(self, unet_lr=1e-4, **kwargs):
        self.requires_grad_(True)
        parts = {"": {}, "plus": {}}
        for lora in self.unet_loras:
            for name, param in lora.named_parameters():
                plus = self.loraplus_lr_ratio is not None and "lora_up" in name
                parts["plus" if plus else ""][f"{lora.lora_name}.{name}"] = param
        groups, descriptions = [], []
        rates = {"": unet_lr, "plus": unet_lr * (self.loraplus_lr_ratio or 1.0)}
        for part, params in parts.items():
            if params and (rate := rates[part]):
                groups.append({"params": params.values(), "lr": rate})
                descriptions.append(f"unet {part}".strip())
        return groups, descriptions

    def enable_gradient_checkpointing(self):
        pass

    def prepare_grad_etc(self, unet):
        self.requires_grad_(True)

    def on_epoch_start(self, unet):
        self.train()

    def on_step_start(self):
        pass

    def get_trainable_params(self):
        return self.parameters()

    def load_weights(self, file):
        return self.load_state_dict(load_file(file), strict=False)

    def save_weights(self, file, dtype, metadata):
        tensors = {key: value.detach().to("cpu", dtype, copy=True) for key, value in self.state_dict().items()}
        save_file(tensors, file, metadata or {})


def create_network(
    target_replace_modules, prefix, multiplier, network_dim, network_alpha, vae, text_encoders, unet,
    neuron_dropout=None, module_class=LoRAModule, module_kwargs=None, **kwargs,
):  # fmt: skip
    """Not what a trainer calls: the modules of architectures are before it."""
    exclude = kwargs.get("exclude_patterns") or []
    exclude = ast.literal_eval(exclude) if isinstance(exclude, str) else exclude
    network = LoRANetwork(
        target_replace_modules, unet, network_dim or 4, network_alpha or 1.0, module_class, exclude=exclude,
        **(module_kwargs or {}),
    )  # fmt: skip
    ratio = kwargs.get("loraplus_lr_ratio")
    network.loraplus_lr_ratio = None if ratio is None else float(ratio)
    return network


def create_network_from_weights(
    target_replace_modules, multiplier, weights_sd, text_encoders=None, unet=None, for_inference=False,
    module_class=LoRAModule, rank_of=lambda name, weights: len(weights[f"{name}.lora_down.weight"]), module_kwargs=None,
    **kwargs,
):  # fmt: skip
    """The network alone, without its weights."""
    alphas = {key.removesuffix(".alpha"): float(value) for key, value in weights_sd.items() if key.endswith(".alpha")}
    dims = {name: rank_of(name, weights_sd) for name in alphas}
    return LoRANetwork(
        target_replace_modules, unet, None, None, module_class, dims=dims, alphas=alphas, **(module_kwargs or {})
    )
