"""Which values of a TOML stop the real trainer of SD 1.x: cases for `real_outcomes.py`, and a table of its outcomes.

python scripts/make_strictness.py cases CASES.json
python scripts/real_outcomes.py CASES.json OUTCOMES.json        (by the harness's Python, about 12 minutes)
python scripts/make_strictness.py table OUTCOMES.json           writes hina_kohya/trainers/facts/strictness.json
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

FACTS = Path(__file__).parents[1] / "hina_kohya" / "trainers" / "facts"
BASE = {
    "pretrained_model_name_or_path": '"{ASSETS}/sd_tiny"', "tokenizer_cache_dir": '"{ASSETS}/tokenizers"',
    "train_data_dir": '"{ASSETS}/data"', "caption_extension": '".txt"', "resolution": '"64,64"',
    "output_dir": '"{OUT}/out"',
    "output_name": '"lora"', "network_module": '"networks.lora"', "network_dim": "4", "network_alpha": "1.0",
    "optimizer_type": '"AdamW"', "learning_rate": "1e-3", "max_train_steps": "2", "train_batch_size": "1",
    "mixed_precision": '"no"', "save_precision": '"float"', "max_data_loader_n_workers": "0", "cache_latents": "true",
    "sdpa": "true", "seed": "42",
}  # fmt: skip
USUAL = {"int": 1, "float": 0.1, "steps": 1}
COUNTS = (
    "network_dim", "max_train_steps", "max_train_epochs", "train_batch_size", "gradient_accumulation_steps",
    "network_alpha",
    "save_every_n_epochs", "save_every_n_steps", "clip_skip", "keep_tokens", "max_token_length", "dataset_repeats",
    "max_timestep", "vae_batch_size", "sample_every_n_steps", "sample_every_n_epochs",
)  # fmt: skip


def cases() -> dict[str, Any]:
    options = json.loads((FACTS / "sd-scripts.json").read_text(encoding="utf-8"))["trainers"]["*"]
    result = {"base": _case({})}
    for name, option in options.items():
        if option.get("list"):
            continue
        if option["type"] != "flag":
            result[f"{name}=empty"] = _case({name: '""'})
        if option["type"] in USUAL:
            usual = BASE.get(name, option.get("default", USUAL[option["type"]]))
            result[f"{name}=text"] = _case({name: f'"{usual}"'})
            if option["type"] == "int":
                result[f"{name}=float"] = _case({name: f"{float(usual)}"})
        if "choices" in option:
            result[f"{name}=outside"] = _case({name: '"nonsense"'})
    for name in COUNTS:
        kind = ".0" if options[name]["type"] == "float" else ""
        result |= {f"{name}={least}": _case({name: f"{least}{kind}"}) for least in (0, -1)}
    return result


def _case(changes: dict[str, str]) -> dict[str, Any]:
    text = "".join(f"{key} = {value}\n" for key, value in {**BASE, **changes}.items())
    return {"script": "train_network.py", "words": ["--config_file", "{OUT}/c.toml"], "files": {"c.toml": text}}


# Its file has another ending and is not found here; tokenizers cannot be downloaded here.
_NOT_TOLD = ("save_model_as", "tokenizer_cache_dir")


def table(outcomes: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """option -> kind of value (empty, text, float, outside, 0, -1) -> how the run stops, or that nothing is trained."""
    assert outcomes["base"]["trainer"] == "trains"
    result: dict[str, dict[str, str]] = {}
    for case, outcome in outcomes.items():
        name, _, kind = case.partition("=")
        verdict = outcome["trainer"]
        if kind and verdict != "trains" and name not in _NOT_TOLD:
            text = verdict.removeprefix("stops: ").removeprefix("voluptuous.error.").partition(" / ")[0]
            result.setdefault(name, {})[kind] = re.sub(
                r" for object value @ .*|Choose between.*|, but expected.*", "", text
            )[:90]
    return result


if __name__ == "__main__":
    what, file = sys.argv[1:]
    if what == "cases":
        Path(file).write_text(json.dumps(cases(), indent=1) + "\n", encoding="utf-8")
    else:
        content = table(json.loads(Path(file).read_text(encoding="utf-8")))
        (FACTS / "strictness.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
