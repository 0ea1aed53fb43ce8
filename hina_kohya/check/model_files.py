"""Which kind of model a file or folder holds, told without loading it; else what its name says."""

import json
import re
import struct
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path

# kind -> names of tensors that only this kind has; a prefix such as `model.diffusion_model.` does not count
_TENSORS = {
    "sdxl": ("conditioner.embedders.1.model.ln_final.weight",),
    "sd2": ("cond_stage_model.model.ln_final.weight",),
    "sd1": ("cond_stage_model.transformer.text_model.final_layer_norm.weight",),
    "sd3": ("joint_blocks.0.x_block.attn.qkv.weight",),
    "hunyuan-image": ("byt5_in.layernorm.weight", "double_blocks.0.img_attn_q.weight"),
    "hunyuan-video": ("double_blocks.0.img_attn_qkv.weight", "txt_in.individual_token_refiner.blocks.0.norm1.weight"),
    "flux2": ("double_stream_modulation_img.lin.weight",),
    "flux1": ("double_blocks.0.img_attn.norm.key_norm.scale",),
    "z-image": ("x_pad_token", "cap_embedder.1.weight"),
    "lumina2": ("noise_refiner.0.attention.qkv.weight", "cap_embedder.1.weight"),
    "anima": ("llm_adapter.blocks.0.self_attn.q_proj.weight", "blocks.0.adaln_modulation_self_attn.1.weight"),
    "wan": ("blocks.0.self_attn.q.weight", "text_embedding.0.weight"),
    "qwen-image": ("transformer_blocks.0.attn.add_k_proj.weight", "txt_norm.weight"),
}
_LARGEST_HEADER = 100_000_000
# How people call models, in the order in which it is looked for.
_NAMES = (
    ("flux2", r"flux[._-]?2\b|flux2"),
    ("flux-kontext", r"kontext"),
    ("flux1", r"flux|chroma"),
    ("z-image", r"z[._-]?image"),
    ("qwen-image", r"qwen[._-]?image"),
    ("hunyuan-image", r"hunyuan[._-]?image"),
    ("hunyuan-video", r"hunyuan[._-]?video"),
    ("wan", r"\bwan[._-]?2|wan2"),
    ("lumina2", r"lumina"),
    ("sd3", r"stable-diffusion-3|\bsd[._-]?3"),
    ("anima", r"\banima(?![a-z])"),
    (
        "sdxl",
        r"stable-diffusion-xl|sd[._-]?xl|(?<![a-z])xl(?![a-z])|xl[._-]?base|pony|illustrious|noobai|animagine|"
        r"juggernaut[._-]?x|wai-?nsfw|[a-z]xl(?:[._-]|v?\d|$)",
    ),
    ("sd2", r"stable-diffusion-2|\bsd[._-]?2|v2-[01]|768-v-ema|512-base-ema"),
    (
        "sd1",
        r"stable-diffusion-v1|v1-[45]|\bsd[._-]?1|sd-v1|anything-v[345]|anylora|animefull|abyssorange|counterfeit|"
        r"realistic[._-]?vision|dreamshaper_[1-8]|chilloutmix|novelai",
    ),
)
_PIPELINES = {
    "StableDiffusionXLPipeline": "sdxl", "StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux1",
    "Lumina2Pipeline": "lumina2", "Lumina2Text2ImgPipeline": "lumina2", "WanPipeline": "wan",
    "QwenImagePipeline": "qwen-image", "ZImagePipeline": "z-image",
}  # fmt: skip


@lru_cache(maxsize=64)
def kind_of(path: str) -> str:
    """One of the kinds above, by the header of a .safetensors or the index of a Diffusers folder; "" if none is."""
    file = Path(path)
    try:
        if file.is_dir():
            return _of_folder(file)
        return _of_tensors(tensors_of(file)) if file.suffix.lower() in (".safetensors", ".sft") else ""
    except (OSError, ValueError, KeyError):  # damaged, or still to come: loading it will say so
        return ""


def tensors_of(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a .safetensors. Raises ValueError or OSError."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", _exactly(stream.read, 8))
        if length > _LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(_exactly(stream.read, length))
    return {name: tuple(each["shape"]) for name, each in header.items() if name != "__metadata__"}


def _exactly(read: Callable[[int], bytes], count: int) -> bytes:
    content = read(count)
    if len(content) < count:
        raise ValueError("the file ends too early")
    return content


def _of_tensors(names: Collection[str]) -> str:
    # A prefix of one, two or three words is left out: net., model.diffusion_model., model.diffusion_model.model.
    bare = {name.split(".", count)[-1] for name in names for count in range(4)}
    return next((kind for kind, marks in _TENSORS.items() if all(each in bare for each in marks)), "")


def _of_folder(folder: Path) -> str:
    index = folder / "model_index.json"
    if not index.is_file():
        return ""
    pipeline = json.loads(index.read_text(encoding="utf-8")).get("_class_name", "")
    if pipeline in _PIPELINES:
        return _PIPELINES[pipeline]
    unet = folder / "unet" / "config.json"
    if not unet.is_file():
        return ""
    config = json.loads(unet.read_text(encoding="utf-8"))
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    return {768: "sd1", 1024: "sd2"}.get(config.get("cross_attention_dim"), "")


def kind_by_name(path: str) -> str:
    """What the name of a file or repository says of it; "" if nothing."""
    name = "/".join(path.replace("\\", "/").rstrip("/").split("/")[-2:]).lower()
    last = name.rpartition("/")[2]
    for text in (last, name):
        for kind, pattern in _NAMES:
            if re.search(pattern, text):
                return kind
    return ""
