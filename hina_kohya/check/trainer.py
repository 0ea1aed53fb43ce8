"""Which trainer, and which of its scripts, a configuration is for."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

from hina_kohya.check import model_files
from hina_kohya.check.reading.source import Source
from hina_kohya.check.schema import TRAINER, Schema, every_option, scripts_with
from hina_kohya.trainers.checkouts import TRAINERS
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.musubi import MUSUBI
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

SDXL = "sdxl_train_network.py"
SD3 = "sd3_train_network.py"
# script of sd-scripts -> architecture, where there is only one; SD3.5 comes in two sizes
_ARCHITECTURES = {
    SDXL: "sdxl",
    "flux_train_network.py": "flux1",
    "lumina_train_network.py": "lumina2",
    "hunyuan_image_train_network.py": "hunyuan-image",
    "anima_train_network.py": "anima",
}

# trainer -> kind of model (model_files) -> script
SCRIPTS_OF_KINDS: dict[str, dict[str, str]] = {
    SD_SCRIPTS.name: {
        "sd1": TRAINER, "sd2": TRAINER, "sdxl": SDXL, "sd3": SD3, "flux1": "flux_train_network.py",
        "lumina2": "lumina_train_network.py", "hunyuan-image": "hunyuan_image_train_network.py",
        "anima": "anima_train_network.py",
    },
    MUSUBI.name: {
        "wan": "wan_train_network.py", "hunyuan-video": "hv_train_network.py", "flux2": "flux_2_train_network.py",
        "flux-kontext": "flux_kontext_train_network.py", "qwen-image": "qwen_image_train_network.py",
        "z-image": "zimage_train_network.py",
    },
}  # fmt: skip
# of lora-scripts' model_train_type
_MODEL_TYPES = {"sd": TRAINER, "sdxl": SDXL, "sd3": SD3, "flux": "flux_train_network.py"}
_NOTHING = "since nothing says otherwise; --script names another"
_LARGE = 1024  # SD 1.x is trained at 512 and 768


@dc.dataclass(frozen=True)
class Script:
    """One script of a trainer. why: how it was told; certain: whether it was told at all, and is not just a guess."""

    trainer: Trainer
    script: str
    why: str
    certain: bool

    def architecture(self, values: Mapping[str, Any]) -> str | None:
        """None where there is no skeleton of the model."""
        if self.trainer is not SD_SCRIPTS or not self.certain:
            return None
        if self.script == TRAINER:
            return "sd2" if values.get("v2") is True else "sd15"
        return _ARCHITECTURES.get(self.script)


def trainer_of(values: Mapping[str, Any], network: str, mentions: Sequence[str], script: str | None) -> Trainer:
    """By the script that is told or that the file `mentions`, else by the module of the network, else by the keys."""
    names = [_file_name(script)] if script is not None else mentions
    for trainer in TRAINERS:
        if any(name in Schema(trainer).scripts for name in names):
            return trainer
    of_network = [trainer for trainer in TRAINERS if network in Schema(trainer).networks]
    if len(of_network) == 1:
        return of_network[0]
    by_trainer = {trainer.name: set(every_option(trainer)) for trainer in TRAINERS}
    own = {name: options.difference(*(other for other in by_trainer.values() if other is not options))
           for name, options in by_trainer.items()}  # fmt: skip
    votes = {name: sum(key in options and value not in ("", None, False) for key, value in values.items())
             for name, options in own.items()}  # fmt: skip
    return MUSUBI if votes[MUSUBI.name] > votes[SD_SCRIPTS.name] else SD_SCRIPTS


def script_of(source: Source, network: str, schema: Schema, script: str | None, arch: str | None) -> Script:
    """By what is said, then the model's file, then values that differ from defaults, then names. Raises UserError.

    source: with its words read; network: the module that makes the network
    """
    trainer = schema.trainer
    if script is not None:
        name = _file_name(script)
        schema.options(name)
        return Script(trainer, name, "as told", True)
    if arch is not None:
        return _of_architecture(arch, trainer)
    if source.script in schema.scripts:
        return Script(trainer, source.script, "named there", True)
    for ending, name in trainer.network_scripts.items():
        if network.endswith(ending):
            return Script(trainer, name, f"because of {network}", True)
    if len(scripts := [each for each in source.mentions if each in schema.scripts]) == 1:
        return Script(trainer, scripts[0], "named in the file", True)
    return _by_model(source.values, schema) or _by_values(source.values, schema) or _by_habits(source.values, schema)


def _of_architecture(arch: str, trainer: Trainer) -> Script:
    if trainer is not SD_SCRIPTS:
        raise UserError(f"--arch is for models of sd-scripts, and this file is for {trainer.name}; leave it out")
    for name, architecture in _ARCHITECTURES.items():
        if architecture == arch:
            return Script(trainer, name, f"because of --arch {arch}", True)
    return Script(trainer, SD3 if arch.startswith("sd3") else TRAINER, f"because of --arch {arch}", True)


def kind_of_model(values: Mapping[str, Any], trainer: Trainer) -> str:
    """What the header of the model's file says; "" where it is not there, or says nothing."""
    value = values.get("dit" if trainer is MUSUBI else "pretrained_model_name_or_path")
    return model_files.kind_of(value) if isinstance(value, str) and value else ""


def _by_model(values: Mapping[str, Any], schema: Schema) -> Script | None:
    name = SCRIPTS_OF_KINDS[schema.trainer.name].get(kind_of_model(values, schema.trainer))
    if name not in schema.scripts:
        return None
    return Script(schema.trainer, name, "as the model's file says", True)


def _file_name(script: str) -> str:
    name = script.replace("\\", "/").rpartition("/")[2]
    return name + ".py" * (not name.endswith(".py"))


def _by_values(values: Mapping[str, Any], schema: Schema) -> Script | None:
    """The script that reads the most of the values which not all of them read; a default says nothing."""
    votes: dict[str, list[str]] = {}
    for key, value in values.items():
        for script, option in scripts_with(key, schema.trainer).items():
            default = option.get("default", False if option["type"] == "flag" else None)
            if value not in (default, "", None) and value in option.get("choices", [value]):
                votes.setdefault(script, []).append(key)
    votes = {script: keys for script, keys in votes.items() if script in schema.scripts}
    if not votes:
        return None
    most = max(map(len, votes.values()))
    best = [script for script in _ARCHITECTURES if len(votes.get(script, ())) == most] or [
        max(votes, key=lambda each: len(votes[each]))
    ]
    ties = [script for script, keys in votes.items() if len(keys) == most and script != best[0]]
    others = f", which {ties[0]} has, too" if ties and schema.trainer is not SD_SCRIPTS else ""
    why = f"because of {', '.join(votes[best[0]][:3])}{others}; --script names another"
    # Of sd-scripts, all the others know what SDXL's knows.
    return Script(schema.trainer, best[0], why, not ties or len(best) == 1 or best[0] == SDXL)


def _by_habits(values: Mapping[str, Any], schema: Schema) -> Script:
    """By what a GUI writes beside, the model's name, and last the resolution, which is a guess."""
    trainer = schema.trainer
    if trainer is not SD_SCRIPTS:
        return Script(trainer, "hv_train_network.py", _NOTHING, False)
    kind = str(values.get("model_train_type", "")).partition("-")[0]
    script = SDXL if values.get("sdxl") is True else _MODEL_TYPES.get(kind, "")
    if script:
        return Script(trainer, script, f"because of {'sdxl' if values.get('sdxl') else 'model_train_type'}", True)
    if values.get("v2") is True:
        return Script(trainer, TRAINER, "because of v2; --script names another", True)
    model = values.get("pretrained_model_name_or_path")
    model_kind = model_files.kind_by_name(model) if isinstance(model, str) else ""
    if name := SCRIPTS_OF_KINDS[trainer.name].get(model_kind):
        return Script(trainer, name, f"because of the name {model}; --script names another", True)
    sides = [int(side) for side in str(values.get("resolution", "")).split(",") if side.strip().isdecimal()]
    if (sides and min(sides) >= _LARGE) or values.get("no_half_vae") is True:
        why = "guessed by resolution or no_half_vae; --script names another"
        return Script(trainer, SDXL, why, False)
    return Script(trainer, TRAINER, _NOTHING, False)
