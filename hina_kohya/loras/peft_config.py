"""adapter_config.json, without which peft loads no file: ranks by module, and an alpha that equals each rank."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from hina_kohya.files import atomic
from hina_kohya.loras.errors import AdapterError
from hina_kohya.loras.names import Place
from hina_kohya.loras.scales import CONFIG

_PREFIX = "base_model.model."


def check_folder(output: Path, sources: Sequence[Path]) -> None:
    """Raises AdapterError where the configuration would take the place of another adapter's."""
    config = output.with_name(CONFIG)
    others = [source for source in sources if source.resolve().parent == output.resolve().parent]
    if config.exists() and (others or not output.exists()):
        raise AdapterError(f"{config} belongs to another adapter, and peft reads one a folder; give -o another folder")


def check_places(places: Sequence[Place | None]) -> None:
    """Raises AdapterError for modules of several models: a file of peft's is of one."""
    models = sorted({place.part for place in places if place})
    if len(models) > 1:
        raise AdapterError(
            f"--names peft: the file has modules of {', '.join(models)}, and peft's files are of one model; "
            "use --names diffusers, or kohya"
        )


def write(output: Path, ranks: dict[str, int], dora: bool) -> None:
    """ranks: of each module by its name in the file, none of them 0."""
    paths = {name.removeprefix(_PREFIX): rank for name, rank in ranks.items()}
    most = max(paths.values())
    # The longest first: peft takes the first pattern that a module's name ends with.
    pattern = {re.escape(path): paths[path] for path in sorted(paths, key=len, reverse=True) if paths[path] != most}
    config = {
        "peft_type": "LORA",
        "r": most,
        "lora_alpha": most,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": "|".join(re.escape(path) for path in paths),  # the whole name has to match
        "use_dora": dora,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "task_type": None,
        "base_model_name_or_path": None,
    }
    with atomic(output.with_name(CONFIG)) as unfinished:
        unfinished.write_text(json.dumps(config, indent=2), encoding="utf-8")
