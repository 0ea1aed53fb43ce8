"""Files of other programs, known by two of their keys: what they are, and what to check instead."""

import re
from collections.abc import Callable, Mapping
from typing import Any

Content = Mapping[str, Any]


def _easy(content: Content) -> bool:
    tables = [each for each in content.values() if isinstance(each, dict)]
    return any(isinstance(each.get(key), dict) for each in tables for key in ("args", "dataset_args"))


def _mixed(content: Content) -> bool:
    others = [key for key, each in content.items() if isinstance(each, dict) and key != "general"]
    return isinstance(content.get("datasets"), list) and bool(others)


def _both(*keys: str) -> Callable[[Content], bool]:
    return lambda content: all(key in content for key in keys)


_KNOWN: tuple[tuple[str, Callable[[Content], bool], str], ...] = (
    (
        "a file of LoRA_Easy_Training_Scripts, whose program turns [NAME.args] and [[subsets]] into sd-scripts' words",
        _easy,
        "check the runtime_store/config.toml that it writes when it trains",
    ),
    (
        "a run and its datasets in one file, and sd-scripts reads no [[datasets]] there",
        _mixed,
        'write [general] and [[datasets]] into a file of their own, and name it: dataset_config = "dataset.toml"',
    ),
    ("a config of OneTrainer", _both("training_method", "concepts"), "sd-scripts and musubi-tuner do not read it"),
    (
        "a config of OneTrainer",
        _both("training_method", "concept_file_name"),
        "sd-scripts and musubi-tuner do not read it",
    ),
    ("a config of ai-toolkit", _both("job", "config"), "sd-scripts and musubi-tuner do not read it"),
    ("a config of diffusion-pipe", _both("adapter", "model"), "sd-scripts and musubi-tuner do not read it"),
    (
        "a config of SimpleTuner",
        _both("data_backend_config", "model_family"),
        "sd-scripts and musubi-tuner do not read it",
    ),
    (
        "a config of SimpleTuner",
        _both("--data_backend_config", "--model_family"),
        "sd-scripts and musubi-tuner do not read it",
    ),
    (
        "an adapter's own configuration (PEFT)",
        _both("peft_type", "base_model_name_or_path"),
        "check the file that the run is started with",
    ),
    ("accelerate's own configuration", _both("compute_environment", "distributed_type"), "check the file of the run"),
)
_YAML = (("a config of ai-toolkit", r"^job:", r"^config:"),
         ("accelerate's own configuration", r"^compute_environment:", r""),
         ("a config of axolotl", r"^base_model:", r"^datasets:"))  # fmt: skip


def name_of(content: Content) -> str:
    """What the file is and what to do, empty for one that a trainer may read."""
    return next((f"{what}; {advice}" for what, is_one, advice in _KNOWN if is_one(content)), "")


def name_of_yaml(text: str) -> str:
    for what, *patterns in _YAML:
        if all(re.search(pattern, text, re.MULTILINE) for pattern in patterns):
            return f"{what}; sd-scripts and musubi-tuner do not read it"
    return "YAML, which neither sd-scripts nor musubi-tuner reads"
