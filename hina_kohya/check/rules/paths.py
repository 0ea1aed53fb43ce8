"""Files and folders that have to be there, and one that has to be writable when the run is over."""

import os
from collections.abc import Iterator
from pathlib import Path

from hina_kohya.check import placeholders
from hina_kohya.check.edit import put
from hina_kohya.check.finding import Finding, error, not_looked_at, warning
from hina_kohya.check.rules import rule, rule_of
from hina_kohya.check.run import Run
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

_FILES = (
    "dit", "dit_high_noise", "t5", "clip", "text_encoder1", "text_encoder2", "image_encoder",
    "vae", "ae", "clip_l", "clip_g", "t5xxl", "gemma2", "qwen3", "text_encoder", "byt5", "llm_adapter_path",
    "log_tracker_config", "network_weights", "in_json", "dataset_config", "sample_prompts",
    "controlnet_model_name_or_path",
)  # fmt: skip
_FOLDERS = ("train_data_dir", "reg_data_dir", "conditioning_data_dir")
# Measured: without them the run goes on.
_DONE_WITHOUT = ("reg_data_dir", "sample_prompts", "conditioning_data_dir")
_ENDINGS = (".safetensors", ".ckpt", ".pt", ".sft")


@rule
def path_missing(run: Run) -> Iterator[Finding]:
    for key in (*_FILES, *_FOLDERS):
        value = run.given(key)
        if not value or placeholders.is_one(value) or _is_garbled(value) or (key == "vae" and not _is_local(value)):
            continue
        path = Path(value)
        if not (path.is_dir() if key in _FOLDERS else path.exists()):
            level = warning if key in _DONE_WITHOUT else error
            what = f"{value} does not exist{_seen_from(path)}"
            yield level(key, what, "looked", advice=f"name one that is there with {key}")
    for value in run.given("base_weights") or ():
        if not placeholders.is_one(value) and not Path(value).exists():
            what = f"{value} does not exist{_seen_from(Path(value))}"
            yield error("base_weights", what, "looked", advice="name those that are there")


@rule
def model_not_found(run: Run) -> Iterator[Finding]:
    """A name such as `owner/model` is taken for a repository of Hugging Face, a path is not."""
    value = run.given("pretrained_model_name_or_path")
    if value and _is_garbled(value):
        return
    if value and not placeholders.is_one(value) and _is_local(value) and not Path(value).exists():
        what = f"{value} does not exist{_seen_from(Path(value))}"
        yield error("pretrained_model_name_or_path", what, "looked", advice="name a file that is there")
    elif value and not placeholders.is_one(value) and not Path(value).exists():
        why = f"{value} is taken for a repository of Hugging Face; nothing is downloaded to see whether it is there"
        yield not_looked_at("pretrained_model_name_or_path", why)


@rule_of(SD_SCRIPTS)
def folder_without_repeats(run: Run) -> Iterator[Finding]:
    """train_data_dir is the parent of folders named `10_words`: repeats, then the class."""
    value = run.given("train_data_dir")
    if (
        not value
        or placeholders.is_one(value)
        or run.args["dataset_config"]
        or run.args["in_json"]
        or not Path(value).is_dir()
    ):
        return
    folders = [each.name for each in Path(value).iterdir() if each.is_dir()]
    if not _has_repeats(Path(value)):
        what = f"{value} has no folder named like 10_words in it, so no image is found" + (
            f" (only {folders[0]})" if folders else ""
        )
        yield error(
            "train_data_dir",
            what,
            "measured: the run ends with exit code 0 and trains nothing",
            put(train_data_dir=str(Path(value).parent)) if _has_repeats(Path(value).parent) else None,
            "name the folder above, and call the one with images 10_words",
        )


@rule
def output_not_writable(run: Run) -> Iterator[Finding]:
    value = run.given("output_dir")
    if not value or placeholders.is_one(value):
        return
    folder = Path(value).absolute()
    ancestor = next(each for each in (folder, *folder.parents) if each.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        why = "is no folder" if not ancestor.is_dir() else "is not writable"
        yield error(
            "output_dir",
            f"{ancestor} {why}, and the run finds out when it saves",
            "looked; trainers make the folder when they save",
            put(output_dir="output"),
        )


def _has_repeats(folder: Path) -> bool:
    return any(each.is_dir() and each.name.partition("_")[0].isdecimal() for each in folder.iterdir())


def _is_garbled(value: str) -> bool:
    """Whether it holds control characters, about which there is a rule."""
    return not value.isprintable()


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
