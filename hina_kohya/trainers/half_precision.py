"""LyCORIS modules that stop at inputs in half precision where a trainer has switched autocast off.

Anima computes its adaptive norms in bf16 without autocast. LyCORIS 4.1.3's DoRA (of LoRA and LoHa; LoKr casts) and its
GLoRA then multiply them with float32: "expected m1 and m2 to have the same dtype". Here these modules have the autocast
that every other layer of the training has. Nothing changes where they would have run.
"""

import functools
from typing import Any

import torch

_DECOMPOSED = ("LoConModule", "LohaModule")
_ALWAYS = ("GLoRAModule",)


def admit(network: Any) -> None:
    """Every such module of a LyCORIS network takes half-precision inputs from here on."""
    for lora in (*network.text_encoder_loras, *network.unet_loras):
        kind = type(lora).__name__
        if kind in _ALWAYS or (kind in _DECOMPOSED and lora.wd):
            lora.forward = functools.partial(_forward, lora.forward)


def _forward(forward: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    device = x.device.type
    if x.dtype not in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(device):
        return forward(x, *args, **kwargs)
    with torch.autocast(device, x.dtype):
        return forward(x, *args, **kwargs)
