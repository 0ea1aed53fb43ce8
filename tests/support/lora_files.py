"""Adapter files of every kind, as LyCORIS 4, sd-scripts and peft write them, of a small model with a U-Net's names."""

import importlib

import torch
from safetensors.torch import save_file
from torch import nn


class Layers(nn.Module):
    """One of each kind of layer, under names that diffusers' U-Net has."""

    def __init__(self):
        super().__init__()
        down, up = nn.Module(), nn.Module()
        down.resnets = nn.ModuleList([nn.Module()])
        down.resnets[0].conv1 = nn.Conv2d(12, 24, 3, padding=1, bias=False)
        down.resnets[0].conv_shortcut = nn.Conv2d(12, 24, 1, bias=False)
        up.attentions = nn.ModuleList([nn.Module()])
        up.attentions[0].proj_in = nn.Linear(24, 36, bias=False)
        block = nn.Module()
        block.attn1 = nn.Module()
        block.attn1.to_q = nn.Linear(36, 24, bias=False)
        block.attn1.to_out = nn.ModuleList([nn.Linear(24, 36, bias=False)])
        up.attentions[0].transformer_blocks = nn.ModuleList([block])
        self.down_blocks, self.up_blocks = nn.ModuleList([down]), nn.ModuleList([up])

    def layers(self):
        """path -> layer."""
        return {name: each for name, each in self.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))}


def inputs(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (5, layer.in_features) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 6, 6)
    return torch.randn(shape, generator=generator)


def kohya(path):
    return f"lora_unet_{path.replace('.', '_')}"


# The arguments of LyCORIS' modules.
KINDS = {
    "lora": ("LoConModule", {}),
    "locon_tucker": ("LoConModule", {"use_tucker": True}),
    "locon_rs": ("LoConModule", {"rs_lora": True}),
    "locon_scalar": ("LoConModule", {"use_scalar": True}),
    "loha": ("LohaModule", {}),
    "loha_tucker": ("LohaModule", {"use_tucker": True}),
    "lokr": ("LokrModule", {"factor": 4}),
    "lokr_tucker": ("LokrModule", {"factor": 2, "use_tucker": True, "lora_dim": 2}),
    "lokr_both": ("LokrModule", {"factor": 6, "decompose_both": True, "lora_dim": 1}),
    "lokr_full": ("LokrModule", {"factor": 4, "full_matrix": True}),
    "full": ("FullModule", {}),
}
_HOMES = {f"{name}Module": f"lycoris.modules.{name.lower()}" for name in ("LoCon", "Loha", "Lokr", "Full")}


def randomised(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in module.parameters():
            if not getattr(param, "is_base", False):
                param.copy_(torch.randn(param.shape, generator=generator) * 0.4)


def lycoris(path, kind, seed=0, dtype=torch.float32, metadata=None, **more):
    """A file of LyCORIS' own modules, and layer path -> what the adapter adds to the layer's output, by LyCORIS."""
    cls, arguments = KINDS[kind]
    arguments = {"lora_dim": 3, "alpha": 2.0, **arguments, **more}
    tensors, outputs = {}, {}
    torch.manual_seed(seed)
    for number, (name, layer) in enumerate(Layers().layers().items()):
        for param in layer.parameters():
            param.is_base = True
        module = getattr(importlib.import_module(_HOMES[cls]), cls)(kohya(name), layer, **arguments)
        randomised(module, seed * 100 + number)
        with torch.no_grad():
            x = inputs(layer)
            outputs[name] = (module(x) - layer(x)).double()
        state = (
            module.state_dict() if kind != "full" else {"diff": module.weight}
        )  # the latter subtracts after apply_to
        tensors |= {f"{kohya(name)}.{key}": tensor.detach().to(dtype).contiguous()
                    for key, tensor in state.items() if key != "org_module"}  # fmt: skip
    save_file(tensors, path, metadata)
    return outputs


def loaded_by_lycoris(path, wd_on_out=True):
    """layer path -> what a LoRA or DoRA file adds to the layer's output, loaded by LyCORIS."""
    from lycoris.modules.locon import LoConModule
    from safetensors.torch import load_file

    tensors, outputs = load_file(path), {}
    torch.manual_seed(0)
    for name, layer in Layers().layers().items():
        found = {key.removeprefix(f"{kohya(name)}."): tensor.float() for key, tensor in tensors.items()
                 if key.startswith(f"{kohya(name)}.")}  # fmt: skip
        if not found:
            continue
        with torch.no_grad():
            if wd_on_out:
                parts = [found.get(key) for key in LoConModule.weight_list]
                module = LoConModule.make_module_from_state_dict(kohya(name), layer, *parts)
            else:  # which LyCORIS does not read off a file by itself
                rank = found["lora_down.weight"].shape[0]
                module = LoConModule(kohya(name), layer, 1, rank, rank, weight_decompose=True, wd_on_out=False)
                module.load_state_dict(found)
            x = inputs(layer)
            outputs[name] = (module(x) - layer(x)).double()
    return outputs


def plain(path, shapes=None, rank=4, seed=0, dtype=torch.float32, metadata=None, alpha=2.0, decay=0.6):
    """A kohya LoRA of layers [(out, in, *kernel)] with falling singular values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or {kohya(name): tuple(layer.weight.shape) for name, layer in Layers().layers().items()}
    tensors = {}
    for name, (m, n, *kernel) in shapes.items():
        fall = (decay ** torch.arange(rank)).view(-1, *[1] * (1 + len(kernel)))
        tensors[f"{name}.lora_down.weight"] = (torch.randn(rank, n, *kernel, generator=generator) * fall).to(dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(m, rank, *[1] * len(kernel), generator=generator).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(alpha).to(dtype)
    save_file(tensors, path, metadata)
    return tensors
