"""What a run cannot do without."""

from collections.abc import Iterator

from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error
from hina_kohya.kohya.checking.rules import rule_of
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# key: what happens without it, how we know, what to write
_NEEDED = {
    "pretrained_model_name_or_path": (
        "there is no model to train on",
        "train_util.py: load_target_model",
        '"model.safetensors"',
    ),
    "network_module": (
        "nothing says which network",
        "measured: 'NoneType' object has no attribute",
        '"hina_kohya.lycoris"',
    ),
    "output_dir": (
        "the run ends with TypeError when it saves, and all is lost",
        f"measured: {at('NetworkTrainer.train')}",
        '"output"',
    ),
}
_DATA = ("dataset_config", "train_data_dir", "in_json", "dataset_class")
# What the trainers load besides the model, and stop without.
_MODELS = {
    "flux_train_network.py": ("ae", "clip_l", "t5xxl"),
    "lumina_train_network.py": ("ae", "gemma2"),
    "hunyuan_image_train_network.py": ("vae", "text_encoder", "byt5"),
    "anima_train_network.py": ("vae", "qwen3"),
}


_NEEDED_BY_MUSUBI = {
    "dit": ("there is no model to train on", '"model.safetensors"'),
    "dataset_config": ("nothing says where the images or videos are", '"dataset.toml"'),
    "network_module": ("nothing says which network", '"hina_kohya.lycoris"'),
    "optimizer_type": ("the default is an empty name, which torch.optim does not have", '"HinaAdamW"'),
    "output_dir": ("the run ends with TypeError when it saves, and all is lost", '"output"'),
    "output_name": ("the run ends with TypeError when it saves, and all is lost", '"my_lora"'),
}
_ATTENTION = ("sdpa", "flash_attn", "flash3", "xformers")


@rule_of(MUSUBI)
def missing_for_musubi(context: Context) -> Iterator[Finding]:
    for key, (what, value) in _NEEDED_BY_MUSUBI.items():
        if key not in context.reading.values:
            yield error(key, what, f"read ({context.at('NetworkTrainer.train')})", f"{key} = {value}")
    if not any(context.on(key) for key in _ATTENTION):
        what = "nothing says how attention is computed, and the run stops"
        yield error("sdpa", what, "read: NetworkTrainer._load_dit_and_swap raises ValueError", "sdpa = true")


@rule_of(SD_SCRIPTS)
def missing(context: Context) -> Iterator[Finding]:
    for key, (what, evidence, value) in _NEEDED.items():
        if key not in context.reading.values:
            yield error(key, what, evidence, f"{key} = {value}")
    if not any(key in context.reading.values for key in _DATA):
        what = "nothing says where the images are"
        yield error(
            "train_data_dir",
            what,
            "measured: the run ends at once, with exit code 0",
            'dataset_config = "dataset.toml"',
        )


@rule_of(SD_SCRIPTS)
def model_missing(context: Context) -> Iterator[Finding]:
    for key in _MODELS.get(context.trainer.script, ()):
        if key == "clip_l" and context.args.get("model_type") == "chroma":
            continue
        if context.args[key] is None and context.trainer.certain:
            yield error(
                key,
                f"{context.trainer.script} loads it",
                f"read: {context.trainer.script}, load_target_model",
                f'{key} = "{key}.safetensors"',
            )
