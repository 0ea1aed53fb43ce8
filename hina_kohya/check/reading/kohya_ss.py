"""A JSON of the kohya_ss GUI as the options that its LoRA tab makes of it (train_model in lora_gui.py, v26)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hina_kohya.check.reading import kohya_ss_networks
from hina_kohya.check.reading.source import Form, Source, Unseen
from hina_kohya.check.schema import Option, every_option
from hina_kohya.trainers.errors import UserError

# checkbox -> script, in the order in which the GUI looks at them
SCRIPTS = {
    "sdxl": "sdxl_train_network.py",
    "flux1_checkbox": "flux_train_network.py",
    "sd3_checkbox": "sd3_train_network.py",
    "hunyuan_image_checkbox": "hunyuan_image_train_network.py",
    "anima_checkbox": "anima_train_network.py",
    "lumina_checkbox": "lumina_train_network.py",
}
# The GUI's name of an option, where it is another.
NAMES = {"resolution": "max_resolution", "optimizer_type": "optimizer"}
_PREFIXES = {
    "sdxl": "sdxl_", "flux1_checkbox": "flux1_", "sd3_checkbox": "sd3_", "hunyuan_image_checkbox": "hunyuan_",
    "anima_checkbox": "anima_", "lumina_checkbox": "lumina_",
}  # fmt: skip
# What a preset leaves to whoever uses it.
FILLED_IN = ("pretrained_model_name_or_path", "train_data_dir", "output_dir")
_TABS = ("Dreambooth", "Finetuning", "Textual Inversion")
# Left out where they are 0, and by the meaning of other keys.
_NOISE = {"Original": ("noise_offset", "adaptive_noise_scale", "noise_offset_random_strength"),
          "Multires": ("multires_noise_iterations", "multires_noise_discount")}  # fmt: skip
_WHOLE = (
    "epoch", "caption_dropout_every_n_epochs", "gradient_accumulation_steps", "keep_tokens", "max_token_length",
    "max_train_epochs", "max_train_steps", "min_bucket_reso", "persistent_data_loader_workers", "seed",
    "lr_scheduler_num_cycles",
)  # fmt: skip
_NOT_FOR_DIT = ("clip_skip", "max_token_length")
_ATTENTION = ("xformers", "sdpa")
_ZERO_IS_UNSET = ("vae_batch_size", "max_data_loader_n_workers", "learning_rate", "max_train_steps")
_UNSEEN_STEPS = "kohya_ss computes it from the images of train_data_dir when it starts the run"


def is_one(content: Mapping[str, Any]) -> bool:
    return "max_resolution" in content and ("LoRA_type" in content or "lr_warmup" in content)


def source_of(content: Mapping[str, Any], file: Path) -> Source:
    """Raises UserError for a file of another tab."""
    if "LoRA_type" not in content:
        raise UserError(
            f"{file} is a file of kohya_ss for another tab than LoRA ({', '.join(_TABS)}); it trains no adapter"
        )
    model = next((box for box in SCRIPTS if content.get(box) is True), "")
    values: dict[str, Any] = {}
    for name, option in every_option().items():
        value = _given(content, name, model)
        if value is not None and value != "":
            values[name] = _typed(name, option, value)
    values |= _derived(content, values, model)
    options = {name: value for name, value in values.items() if value not in ("", False, None)}
    options["max_data_loader_n_workers"] = _number(content.get("max_data_loader_n_workers") or 0)
    words = str(content.get("additional_parameters") or "").replace('"', "").split()
    unseen = () if {"max_train_steps", "max_train_epochs", "dataset_config"} & set(options) else (
        Unseen("max_train_steps", _UNSEEN_STEPS),
    )  # fmt: skip
    return Source(
        Form.KOHYA_SS, str(file), file, options, words=tuple(words), unseen=unseen,
        script=SCRIPTS.get(model, "train_network.py"), dropped=tuple(_dropped(content, values, model)),
    )  # fmt: skip


def _given(content: Mapping[str, Any], name: str, model: str) -> Any:
    """What the GUI has under an option's name, or under its name for one model."""
    if model and (own := f"{_PREFIXES[model]}{name}") in content:
        return content[own]
    return content.get(NAMES.get(name, name))


def _typed(name: str, option: Option, value: Any) -> Any:
    """As the GUI's widgets and its `int(...)` leave a value."""
    if name in _WHOLE or (option.type == "int" and isinstance(value, (str, float))):
        return _number(value, whole=True)
    if option.type in ("float", "steps") and isinstance(value, str):
        return _number(value)
    return value


def _number(value: Any, whole: bool = False) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if whole or (number == int(number) and not isinstance(value, float)) else number


def _derived(content: Mapping[str, Any], values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What the GUI computes from several of its fields."""
    rate = {name: float(_number(content.get(name) or 0) or 0) for name in ("text_encoder_lr", "unet_lr", "t5xxl_lr")}
    options: dict[str, Any] = {name: content.get("xformers") == name for name in _ATTENTION}
    options["learning_rate"] = float(_number(content.get("learning_rate") or 0) or 0)
    options["unet_lr"] = rate["unet_lr"]
    encoder = rate["text_encoder_lr"]
    options["text_encoder_lr"] = [encoder, rate["t5xxl_lr"] or encoder] if encoder > 0 else None
    hunyuan = model == "hunyuan_image_checkbox"
    options["network_train_unet_only"] = hunyuan or (encoder == 0 and rate["unet_lr"] != 0)
    options["network_train_text_encoder_only"] = not hunyuan and encoder != 0 and rate["unet_lr"] == 0
    options["lr_warmup_steps"] = _warmup(content)
    module, words = kohya_ss_networks.network_of(content, sd3=model == "sd3_checkbox")
    options |= {"network_module": module, "network_args": words or None}
    for name in ("optimizer_args", "lr_scheduler_args"):
        options[name] = str(content.get(name) or "").replace('"', "").split() or None
    kind = content.get("noise_offset_type") or "Original"
    options |= {name: None for group, names in _NOISE.items() if group != kind for name in names}
    if model not in ("", "sdxl"):
        options |= dict.fromkeys(_NOT_FOR_DIT)
    options["sample_prompts"] = None  # it writes a file of them
    return options


def _warmup(content: Mapping[str, Any]) -> int | float:
    """Steps; else a share of the run, as per cent."""
    if (steps := float(_number(content.get("lr_warmup_steps") or 0))) > 0:
        return int(steps)
    percent = float(_number(content.get("lr_warmup") or 0))
    total = float(_number(content.get("max_train_steps") or 0))
    if content.get("dataset_config"):
        return round(percent * total / 100)
    return percent / 100 if percent else 0


def _dropped(content: Mapping[str, Any], values: Mapping[str, Any], model: str) -> list[str]:
    """Options whose 0 the GUI leaves out, although the trainer's default is another."""
    zeros = [name for name, value in values.items() if type(value) in (int, float) and value == 0]
    options = every_option()
    return [
        name
        for name in zeros
        if name in options
        and options[name].default
        and _given(content, name, model) == 0
        and name not in _ZERO_IS_UNSET
    ]
