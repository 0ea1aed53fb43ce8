"""The network that kohya_ss makes of its field "LoRA type": the module and its network_args."""

from collections.abc import Mapping
from typing import Any

_BASE = ("conv_dim", "conv_alpha")
_DROPOUT = ("rank_dropout", "module_dropout")
_FACTORED = (
    *_BASE,
    "use_tucker",
    "rank_dropout",
    "bypass_mode",
    "dora_wd",
    "module_dropout",
    "use_scalar",
    "rank_dropout_scale",
    "train_norm",
)
# LoRA type -> algorithm of LyCORIS, and the fields that are handed on whatever they say
_LYCORIS: dict[str, tuple[str, tuple[str, ...]]] = {
    "LyCORIS/BOFT": ("boft", (*_BASE, *_DROPOUT, "use_tucker", "rank_dropout_scale", "train_norm")),
    "LyCORIS/Diag-OFT": (
        "diag-oft",
        (*_BASE, *_DROPOUT, "use_tucker", "rank_dropout_scale", "constraint", "rescaled", "train_norm"),
    ),
    "LyCORIS/DyLoRA": ("dylora", (*_BASE, *_DROPOUT, "use_tucker", "block_size", "train_norm")),
    "LyCORIS/GLoRA": ("glora", (*_BASE, *_DROPOUT, "use_tucker", "rank_dropout_scale", "train_norm")),
    "LyCORIS/iA3": ("ia3", (*_BASE, "train_on_input")),
    "LoCon": ("locon", _FACTORED),
    "LyCORIS/LoCon": ("locon", _FACTORED),
    "LyCORIS/LoHa": ("loha", _FACTORED),
    "LyCORIS/LoKr": ("lokr", (*_FACTORED, "factor", "use_cp", "decompose_both")),
    "LyCORIS/Native Fine-Tuning": ("full", (*_DROPOUT, "rank_dropout_scale", "train_norm")),
}
_FIELDS: dict[str, str] = {"constraint": "constrain", "block_size": "unit"}
_BLOCKS = (
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "block_dims", "block_alphas",
    "conv_block_dims", "conv_block_alphas", *_DROPOUT,
)  # fmt: skip
_FLUX = (
    "img_attn_dim", "img_mlp_dim", "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim", "txt_mod_dim",
    "single_mod_dim", "in_dims", "train_double_block_indices", "train_single_block_indices", "split_qkv", "train_t5xxl",
    *_DROPOUT,
)  # fmt: skip
# LoRA type -> module of sd-scripts, and the fields that are handed on where they say something
_NATIVE: dict[str, tuple[str, tuple[str, ...]]] = {
    "Standard": ("networks.lora", _BLOCKS),
    "Kohya LoCon": ("networks.lora", (*_BASE, *_BLOCKS)),
    "LoRA-FA": ("networks.lora_fa", _BLOCKS),
    "Kohya DyLoRA": ("networks.dylora", (*_BASE, *_BLOCKS, "unit")),
    "Flux1": ("networks.lora_flux", _FLUX),
    "Flux1 OFT": ("networks.oft_flux", ("enable_all_linear",)),
    "HunyuanImage-2.1": ("networks.lora_hunyuan_image", _DROPOUT),
    "Anima": ("networks.lora_anima", _DROPOUT),
    "Lumina": ("networks.lora_lumina", _DROPOUT),
    "Kohya LoHa": ("networks.loha", (*_BASE, "use_tucker", *_DROPOUT)),
    "Kohya LoKr": ("networks.lokr", (*_BASE, "use_tucker", "factor", *_DROPOUT)),
}
_PLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")


def network_of(content: Mapping[str, Any], sd3: bool) -> tuple[str, list[str]]:
    """The module, "" where the type is unknown, and the words of network_args."""
    kind = str(content.get("LoRA_type") or "Standard")
    plus = [f"{name}={content[name]}" for name in _PLUS if content.get(name)]
    if kind in _LYCORIS:
        algorithm, fields = _LYCORIS[kind]
        preset = content.get("LyCORIS_preset") or "full"
        arguments = [
            f"{name}={content[field]}" for name in fields for field in [_FIELDS.get(name, name)] if field in content
        ]
        return "lycoris.kohya", f"preset={preset} algo={algorithm} {' '.join(arguments)}".split() + plus
    module, fields = _NATIVE.get(kind, ("", ()))
    if kind == "Standard" and sd3:
        module = "networks.lora_sd3"
    if kind == "Flux1" and content.get("train_lora_ggpo"):
        fields = (*fields, "ggpo_beta", "ggpo_sigma")
    arguments = [f"{name}={content[name]}" for name in fields if content.get(name)]
    if kind == "Flux1" and content.get("split_mode"):
        arguments.append("train_blocks=single")
    return module, " ".join(arguments).split() + plus
