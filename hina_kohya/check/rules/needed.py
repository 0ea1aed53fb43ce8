"""What a run cannot do without."""

from collections.abc import Iterator

from hina_kohya.check.edit import put
from hina_kohya.check.finding import Finding, error
from hina_kohya.check.reading import kohya_ss
from hina_kohya.check.reading.source import Form
from hina_kohya.check.rules import rule_of
from hina_kohya.check.run import Run
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# key: what happens without it, how we know, a value that is always there, and what to write otherwise
_NEEDED = {
    "pretrained_model_name_or_path": (
        "there is no model to train on",
        "train_util.py: load_target_model",
        "",
        'name it: pretrained_model_name_or_path = "model.safetensors"',
    ),
    "network_module": (
        "nothing says which network",
        "measured: 'NoneType' object has no attribute",
        "networks.lora",
        "",
    ),
    "output_dir": (
        "the run ends with TypeError when it saves, and all is lost",
        f"measured: {at('NetworkTrainer.train')}",
        "output",
        "",
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
    "dit": ("there is no model to train on", ""),
    "dataset_config": ("nothing says where the images or videos are", ""),
    "network_module": ("nothing says which network", ""),
    "optimizer_type": ("the default is an empty name, which torch.optim does not have", "AdamW"),
    "output_dir": ("the run ends with TypeError when it saves, and all is lost", "output"),
    "output_name": ("the run ends with TypeError when it saves, and all is lost", "my_lora"),
}
_ATTENTION = ("sdpa", "flash_attn", "flash3", "xformers")


@rule_of(MUSUBI)
def missing_for_musubi(run: Run) -> Iterator[Finding]:
    for key, (what, value) in _NEEDED_BY_MUSUBI.items():
        if not run.source.values.get(key):
            advice = "" if value else f"name it with {key}"
            yield error(
                key, what, f"read ({run.at('NetworkTrainer.train')})", put(**{key: value}) if value else None, advice
            )
    if not any(run.on(key) for key in _ATTENTION):
        what = "nothing says how attention is computed, and the run stops"
        yield error("sdpa", what, "read: NetworkTrainer._load_dit_and_swap raises ValueError", put(sdpa=True))


@rule_of(SD_SCRIPTS)
def missing(run: Run) -> Iterator[Finding]:
    for key, (what, evidence, value, advice) in _NEEDED.items():
        if not run.source.values.get(key) and not _unseen(run, key) and not _is_filled_in_later(run, key):
            yield error(key, what, evidence, put(**{key: value}) if value else None, advice)
    has_data = any(run.source.values.get(key) or _unseen(run, key) for key in _DATA)
    if not has_data and not _is_filled_in_later(run, "train_data_dir"):
        what = "nothing says where the images are"
        advice = "name them with train_data_dir or dataset_config"
        yield error("train_data_dir", what, "measured: the run ends at once, with exit code 0", advice=advice)


def _is_filled_in_later(run: Run, key: str) -> bool:
    """In the GUI, by whoever uses a preset."""
    return run.source.form is Form.KOHYA_SS and key in kohya_ss.FILLED_IN


def _unseen(run: Run, key: str) -> bool:
    """Whether it is given by a shell's variable whose value is not known."""
    return key in run.source.unseen_options


@rule_of(SD_SCRIPTS)
def model_missing(run: Run) -> Iterator[Finding]:
    for key in _MODELS.get(run.trainer.script, ()):
        if key == "clip_l" and run.args.get("model_type") == "chroma":
            continue
        if not run.args[key] and run.trainer.certain and not _unseen(run, key):
            yield error(
                key,
                f"{run.trainer.script} loads it",
                f"read: {run.trainer.script}, load_target_model",
                advice=f'name it: {key} = "{key}.safetensors"',
            )
