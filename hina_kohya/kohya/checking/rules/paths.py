"""Files and folders that have to be there, and one that has to be writable when the run is over."""

import os
from collections.abc import Iterator
from pathlib import Path

from hina_kohya.kohya.checking import placeholders
from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error
from hina_kohya.kohya.checking.rules import rule, rule_of
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

_FILES = (
    "dit", "dit_high_noise", "t5", "clip", "text_encoder1", "text_encoder2", "image_encoder",
    "vae", "ae", "clip_l", "clip_g", "t5xxl", "gemma2", "qwen3", "text_encoder", "byt5", "llm_adapter_path",
    "network_weights", "in_json", "dataset_config", "sample_prompts", "controlnet_model_name_or_path",
)  # fmt: skip
_FOLDERS = ("train_data_dir", "reg_data_dir", "conditioning_data_dir")
_ENDINGS = (".safetensors", ".ckpt", ".pt", ".sft")


@rule
def path_missing(context: Context) -> Iterator[Finding]:
    for key in (*_FILES, *_FOLDERS):
        value = context.given(key)
        if not value or placeholders.is_one(value) or (key == "vae" and not _is_local(value)):
            continue
        path = Path(value)
        if not (path.is_dir() if key in _FOLDERS else path.exists()):
            yield error(key, f"{value} does not exist{_seen_from(path)}", "looked", f'{key} = "..."')
    for value in context.given("base_weights") or ():
        if not placeholders.is_one(value) and not Path(value).exists():
            yield error(
                "base_weights", f"{value} does not exist{_seen_from(Path(value))}", "looked", 'base_weights = ["..."]'
            )


@rule
def model_not_found(context: Context) -> Iterator[Finding]:
    """A name such as `owner/model` is taken for a repository of Hugging Face, a path is not."""
    value = context.given("pretrained_model_name_or_path")
    if value and not placeholders.is_one(value) and _is_local(value) and not Path(value).exists():
        what = f"{value} does not exist{_seen_from(Path(value))}"
        yield error("pretrained_model_name_or_path", what, "looked", 'pretrained_model_name_or_path = "..."')


@rule_of(SD_SCRIPTS)
def folder_without_repeats(context: Context) -> Iterator[Finding]:
    """train_data_dir is the parent of folders named `10_words`: repeats, then the class."""
    value = context.given("train_data_dir")
    if (
        not value
        or placeholders.is_one(value)
        or context.args["dataset_config"]
        or context.args["in_json"]
        or not Path(value).is_dir()
    ):
        return
    inside = [each.name for each in Path(value).iterdir() if each.is_dir()]
    if not any(name.partition("_")[0].isdecimal() for name in inside):
        what = f"{value} has no folder named like 10_words in it, so no image is found" + (
            f" (only {inside[0]})" if inside else ""
        )
        yield error(
            "train_data_dir",
            what,
            "measured: the run ends with exit code 0 and trains nothing",
            f'train_data_dir = "{Path(value).parent}"',
        )


@rule
def output_not_writable(context: Context) -> Iterator[Finding]:
    value = context.given("output_dir")
    if not value or placeholders.is_one(value):
        return
    folder = Path(value).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "is no folder" if not there.is_dir() else "is not writable"
        yield error(
            "output_dir",
            f"{there} {why}, and the run finds out when it saves",
            "looked; trainers make the folder when they save",
            'output_dir = "output"',
        )


def _is_local(value: str) -> bool:
    """Whether it can only be a path."""
    return (
        value.lower().endswith(_ENDINGS)
        or value.startswith((".", "/", "~"))
        or "\\" in value
        or ":" in value
        or value.count("/") > 1
    )


def _seen_from(path: Path) -> str:
    return "" if path.is_absolute() else f" (seen from {Path.cwd()}, where the run has to be started, too)"
