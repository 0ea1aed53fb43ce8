"""`networks.lora*` without a checkout: LoRA on the classes that each targets by default. A stand-in that says so."""

import dataclasses as dc
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_CLIP = ("CLIPAttention", "CLIPMLP")
_T5 = ("T5Attention", "T5DenseGatedActDense")
# What changes neither shapes nor groups, and what is followed.
_KNOWN = {
    "dropout", "neuron_dropout", "rank_dropout", "module_dropout", "conv_alpha", "verbose", "ggpo_beta", "ggpo_sigma",
    "conv_dim", "train_t5xxl", "train_llm_adapter", "inner",
    "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio",
}  # fmt: skip


@dc.dataclass(frozen=True)
class Encoder:
    """Targets in a text encoder; `switch` is the argument that turns its training on, and "" is always on."""

    prefix: str
    label: str
    classes: tuple[str, ...]
    switch: str = ""


@dc.dataclass(frozen=True)
class Targets:
    """Class names whose Linear layers and 1x1 convolutions get a LoRA.

    text_encoders: those of each text encoder
    conv         : classes added by `conv_dim`, 3x3 convolutions included
    adapter      : classes added by `train_llm_adapter`
    exclude      : pattern of paths left out
    together     : one group and one learning rate for all text encoders
    """

    unet: tuple[str, ...]
    text_encoders: tuple[Encoder, ...] = ()
    conv: tuple[str, ...] = ()
    adapter: tuple[str, ...] = ()
    exclude: str = ""
    together: bool = False


_CLIP_L = Encoder("lora_te1", "textencoder 1", _CLIP)
_CLIP_G = Encoder("lora_te2", "textencoder 1", _CLIP)  # sd-scripts' own label for the second one
ESTIMATES = {
    "networks.lora": Targets(
        unet=("Transformer2DModel",),
        text_encoders=(_CLIP_L, _CLIP_G),
        conv=("ResnetBlock2D", "Downsample2D", "Upsample2D"),
        together=True,
    ),
    "networks.lora_flux": Targets(
        unet=("DoubleStreamBlock", "SingleStreamBlock"),
        text_encoders=(_CLIP_L, Encoder("lora_te3", "textencoder 2", _T5, "train_t5xxl")),
    ),
    "networks.lora_sd3": Targets(
        unet=("SingleDiTBlock",),
        text_encoders=(_CLIP_L, _CLIP_G, Encoder("lora_te3", "textencoder 3", _T5, "train_t5xxl")),
    ),
    "networks.lora_lumina": Targets(
        unet=("JointTransformerBlock", "FinalLayer"),
        text_encoders=(Encoder("lora_te", "textencoder", ("Gemma2Attention", "Gemma2MLP")),),
    ),
    "networks.lora_hunyuan_image": Targets(unet=("MMDoubleStreamBlock", "MMSingleStreamBlock")),
    "networks.lora_anima": Targets(
        unet=("Block", "PatchEmbed", "TimestepEmbedding", "FinalLayer"),
        text_encoders=(Encoder("lora_te", "textencoder 1", ("Qwen3Attention", "Qwen3MLP")),),
        adapter=("LLMAdapterTransformerBlock",),
        exclude=r".*(_modulation|_norm|_embedder|final_layer).*",
    ),
}


class _Lora(nn.Module):
    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int):
        super().__init__()
        outputs, inputs, *kernel = layer.weight.shape
        self.lora_down, self.lora_up = nn.Module(), nn.Module()
        self.lora_down.weight = nn.Parameter(torch.empty(rank, inputs, *kernel))
        self.lora_up.weight = nn.Parameter(torch.empty(outputs, rank, *[1] * len(kernel)))
        self.register_buffer("alpha", torch.tensor(1.0))


class Estimate(nn.Module):
    """Has what `forecast.network` asks of a network."""

    def __init__(self, targets: Targets, dim: int | None, encoders: Any, unet: nn.Module, kwargs: Mapping[str, Any]):
        super().__init__()
        self.targets, self.kwargs = targets, kwargs
        self.ignored = sorted(set(kwargs) - _KNOWN)
        self.rank, conv_rank = dim or 4, int(kwargs.get("conv_dim") or 0)
        alone = not isinstance(encoders, list)
        self.parts: list[dict[str, _Lora]] = []
        for each, encoder in zip(targets.text_encoders, [encoders] if alone else encoders, strict=False):
            on = not each.switch or self._is_on(each.switch)
            self.parts.append(self._loras("lora_te" if alone else each.prefix, encoder, each.classes) if on else {})
        unet_classes = targets.unet + (targets.conv if conv_rank else ())
        unet_classes += targets.adapter if self._is_on("train_llm_adapter") else ()
        self.parts.append(self._loras("lora_unet", unet, unet_classes, conv_rank))
        if not targets.together:
            self.prepare_optimizer_params_with_multiple_te_lrs = self.prepare_optimizer_params

    def _is_on(self, switch: str) -> bool:
        return str(self.kwargs.get(switch)).lower() == "true"

    def _loras(self, prefix: str, model: nn.Module, classes: tuple[str, ...], conv: int = 0) -> dict[str, _Lora]:
        found: dict[str, _Lora] = {}
        for name, module in model.named_modules():
            for child_name, child in module.named_modules() if type(module).__name__ in classes else ():
                path = f"{name}.{child_name}"
                if not isinstance(child, (nn.Linear, nn.Conv2d)) or re.fullmatch(self.targets.exclude, path):
                    continue
                rank = self.rank if child.weight.shape[2:].numel() == 1 else conv
                if rank:
                    found[f"{prefix}_{path}".replace(".", "_")] = _Lora(child, rank)
        return found

    def apply_to(self, _encoders: Any, _unet: Any, text_encoder: bool, unet: bool) -> None:
        *encoders, last = self.parts
        self.parts = [*(part if text_encoder else {} for part in encoders), last if unet else {}]
        for part in self.parts:
            for name, lora in part.items():
                self.add_module(name, lora)

    def prepare_optimizer_params(self, text_encoder_lr: Any, unet_lr: Any, default_lr: Any) -> Any:
        *encoders, unet = self.parts
        labels = [each.label for each in self.targets.text_encoders]
        if self.targets.together:
            encoders, labels = [{name: lora for part in encoders for name, lora in part.items()}], ["textencoder"]
        rates = text_encoder_lr if isinstance(text_encoder_lr, list) else [text_encoder_lr]
        found = [
            group
            for number, (part, label) in enumerate(zip(encoders, labels, strict=False))
            for group in self._groups(
                part, _or(rates[min(number, len(rates) - 1)] if rates else None, default_lr), label
            )
        ]
        found += self._groups(unet, _or(unet_lr, default_lr), "unet")
        return [group for group, _ in found], [label for _, label in found]

    def _groups(self, part: dict[str, _Lora], lr: float | None, label: str) -> list[tuple[dict[str, Any], str]]:
        specific = "loraplus_unet_lr_ratio" if label == "unet" else "loraplus_text_encoder_lr_ratio"
        ratio = float(self.kwargs.get(specific) or self.kwargs.get("loraplus_lr_ratio") or 0)
        named = {f"{name}.{end}": param for name, lora in part.items() for end, param in lora.named_parameters()}
        slow = {name: param for name, param in named.items() if not ratio or "lora_up" not in name}
        fast = {name: param for name, param in named.items() if name not in slow}
        made = [(slow, lr, label), (fast, (lr or 0) * ratio, f"{label} plus")]
        return [({"params": params.values(), "lr": rate}, said) for params, rate, said in made if params and rate]


def _or(rate: float | None, default: float | None) -> float | None:
    return default if rate is None else rate
