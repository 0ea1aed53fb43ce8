"""Module names of kohya, peft, diffusers and ComfyUI, through one place that they all stand for.

kohya     : `lora_unet_..._to_q`, no dots; read by every program
peft      : `base_model.model.<path>`, one model per file, scales in adapter_config.json
diffusers : `unet.<path>`, `transformer.<path>`, `text_encoder.<path>`; no alpha
comfy     : `diffusion_model.<path>`, `text_encoders.clip_l.transformer.<path>`; the original model's own paths

A transformer (FLUX, SD 3, Wan, ...) has other modules in diffusers than in the trainers, some cut differently, so names
lead from kohya to comfy and peft and back, and not to diffusers.
"""

import dataclasses as dc

from hina_kohya.loras import unet_names, words
from hina_kohya.loras.errors import AdapterError

STYLES = ("kohya", "peft", "diffusers", "comfy")
UNET = "unet"
_KOHYA = {"lora_unet_": UNET, "lora_te_": "te", "lora_te1_": "te1", "lora_te2_": "te2", "lora_te3_": "te3"}
_DIFFUSERS = {
    "unet.": UNET,
    "transformer.": UNET,
    "text_encoder.": "te1",
    "text_encoder_2.": "te2",
    "text_encoder_3.": "te3",
}
_COMFY = {
    "diffusion_model.": UNET,
    "text_encoders.clip_l.transformer.": "te1",
    "text_encoders.clip_g.transformer.": "te2",
    "text_encoders.clip_h.transformer.": "te1",
    "text_encoders.t5xxl.transformer.": "te3",
}
_PEFT = "base_model.model."


@dc.dataclass(frozen=True)
class Place:
    """part: `unet`, `te`, `te1` to `te3`; path: dotted, as diffusers has it where the model is a U-Net."""

    part: str
    path: str


@dc.dataclass(frozen=True)
class Model:
    """What names depend on beside themselves, read off a whole file.

    unet    : a U-Net of SD 1.x, 2.x or SDXL
    sdxl    : of SDXL
    hunyuan : see `words`
    pair    : there is more than one text encoder
    """

    unet: bool
    sdxl: bool
    hunyuan: bool
    pair: bool


def style_of(name: str) -> str:
    """Whose name it is; "" for one of nobody known, such as LyCORIS' `lycoris_`."""
    if name.startswith(tuple(_KOHYA)):
        return "kohya"
    if name.startswith(_PEFT):
        return "peft"
    if name.startswith(tuple(_DIFFUSERS)):
        return "diffusers"
    return "comfy" if name.startswith(tuple(_COMFY)) else ""


def styles_of(names: list[str]) -> str:
    """The style of a whole file; "" where it has none or several."""
    styles = {style_of(name) for name in names}
    return styles.pop() if len(styles) == 1 else ""


def model_of(names: list[str], metadata: dict[str, str]) -> Model:
    flats = [name.replace(".", "_") for name in names]
    version = metadata.get("ss_base_model_version", "")
    original = any("_input_blocks_" in flat or "_output_blocks_" in flat or "_middle_block_" in flat for flat in flats)
    unet = (
        original
        or version.startswith(("sd_v", "sdxl"))
        or any(f"_{block}_" in f"_{flat}" for flat in flats for block in ("down_blocks", "up_blocks", "mid_block"))
    )
    pair = any(flat.startswith(("lora_te2_", "text_encoder_2_", "text_encoders_clip_g")) for flat in flats)
    deep = any("attentions_0_transformer_blocks_1_" in flat or "_1_transformer_blocks_1_" in flat for flat in flats)
    native_kohya = original and any(style_of(name) == "kohya" for name in names)  # sd-scripts' SDXL and nothing else
    sdxl = unet and ("sdxl" in version or pair or deep or native_kohya)
    return Model(unet, sdxl, words.is_hunyuan(flats), pair)


def place_of(name: str, model: Model) -> Place:
    """Raises AdapterError for names of nobody known."""
    for prefix, part in _KOHYA.items():
        if name.startswith(prefix):
            return _placed(part, words.dotted(name.removeprefix(prefix), model.hunyuan))
    if name.startswith(_PEFT):
        path = name.removeprefix(_PEFT)
        return _placed("te" if path.startswith("text_model.") else UNET, path)
    for prefix, part in (*_DIFFUSERS.items(), *_COMFY.items()):
        if name.startswith(prefix):
            return _placed(part, name.removeprefix(prefix).replace(".processor.", "."))
    raise AdapterError(f"{name} is no name of {', '.join(STYLES)}; leave --names out")


def _placed(part: str, path: str) -> Place:
    if part == UNET and unet_names.is_original(path):
        path = unet_names.to_diffusers(path)
    if path.endswith((".to_out", "to_out")):  # diffusers' processors
        path += ".0"
    return Place("te1" if part == "te" else part, path)


def named(place: Place, style: str, model: Model) -> str:
    """The name of a place. Raises AdapterError where the style has none for it."""
    if style == "kohya":
        part = {"te1": "te1" if model.sdxl or model.pair or not model.unet else "te"}.get(place.part, place.part)
        path = native(place, model) if model.sdxl else place.path
        return f"lora_{part}_{path.replace('.', '_')}"
    if style == "comfy":
        return next(prefix for prefix, part in _COMFY.items() if part == place.part) + native(place, model)
    if style == "peft":
        return _PEFT + place.path
    if not model.unet and place.part == UNET:
        raise AdapterError(
            "--names diffusers: this transformer's modules are others in diffusers, so no map of names leads there; "
            "use --names kohya or comfy, which diffusers' own loader converts"
        )
    return next(prefix for prefix, part in _DIFFUSERS.items() if part == place.part) + place.path


def native(place: Place, model: Model) -> str:
    """The path in the original model."""
    if place.part == UNET and model.unet:
        return unet_names.to_original(place.path, model.sdxl)
    return place.path


ENDINGS = {
    "kohya": ("lora_up.weight", "lora_down.weight"),
    "peft": ("lora_B.weight", "lora_A.weight"),
    "diffusers": ("lora_B.weight", "lora_A.weight"),
    "comfy": ("lora_B.weight", "lora_A.weight"),
}
