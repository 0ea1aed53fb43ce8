"""Which trainer, and which of its scripts, a configuration is for."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

from hina_kohya.kohya.checking.schema import TRAINER, Schema, every_option, scripts_with
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


@dc.dataclass(frozen=True)
class Script:
    """One script of a trainer. why: how it was told; certain: whether it was told at all, and is not just a guess."""

    trainer: Trainer
    script: str
    why: str
    certain: bool

    def architecture(self, values: Mapping[str, Any]) -> str | None:
        """None where there is no skeleton of the model."""
        if self.trainer is not SD_SCRIPTS:
            return None
        if self.script == TRAINER and self.certain:
            return "sd2" if values.get("v2") is True else "sd15"
        return _ARCHITECTURES.get(self.script)


def trainer_of(values: Mapping[str, Any], network: str, named: Sequence[str], script: str | None) -> Trainer:
    """By the script that is told or `named` in the file, else by the module of the network, else by the keys."""
    names = [_file_name(script)] if script is not None else named
    for trainer in TRAINERS:
        if any(name in Schema(trainer).scripts for name in names):
            return trainer
    of_network = [trainer for trainer in TRAINERS if network in Schema(trainer).networks]
    if len(of_network) == 1:
        return of_network[0]
    known = {trainer.name: set(every_option(trainer)) for trainer in TRAINERS}
    only = {name: options.difference(*(other for other in known.values() if other is not options))
            for name, options in known.items()}  # fmt: skip
    votes = {name: sum(key in options for key in values) for name, options in only.items()}
    return MUSUBI if votes[MUSUBI.name] > votes[SD_SCRIPTS.name] else SD_SCRIPTS


def script_of(
    values: Mapping[str, Any],
    network: str,
    named: Sequence[str],
    schema: Schema,
    script: str | None,
    arch: str | None,
) -> Script:
    """From the module that makes the network, or the scripts `named` in the file, or the keys. Raises UserError."""
    trainer = schema.trainer
    if script is not None:
        name = _file_name(script)
        schema.options(name)
        return Script(trainer, name, "as told", True)
    if arch is not None:
        if trainer is not SD_SCRIPTS:
            raise UserError(f"--arch is for models of sd-scripts, and this file is for {trainer.name}; leave it out")
        for name, known in _ARCHITECTURES.items():
            if known == arch:
                return Script(trainer, name, f"because of --arch {arch}", True)
        return Script(trainer, SD3 if arch.startswith("sd3") else TRAINER, f"because of --arch {arch}", True)
    for ending, name in trainer.network_scripts.items():
        if network.endswith(ending):
            return Script(trainer, name, f"because of {network}", True)
    if len(known := [each for each in named if each in schema.scripts]) == 1:
        return Script(trainer, known[0], "named in the file", True)
    return _by_keys(values, schema)


def _file_name(script: str) -> str:
    name = script.replace("\\", "/").rpartition("/")[2]
    return name + ".py" * (not name.endswith(".py"))


def _by_keys(values: Mapping[str, Any], schema: Schema) -> Script:
    """The script that knows the most of the keys that not all of them know."""
    votes: dict[str, list[str]] = {}
    for key, value in values.items():
        for script, option in scripts_with(key, schema.trainer).items():
            if value in option.get("choices", [value]):
                votes.setdefault(script, []).append(key)
    plain = TRAINER if schema.trainer is SD_SCRIPTS else "hv_train_network.py"
    if not votes:
        return Script(schema.trainer, plain, "since nothing says otherwise; --script names another", False)
    most = max(map(len, votes.values()))
    best = [script for script in _ARCHITECTURES if len(votes.get(script, ())) == most] or [
        max(votes, key=lambda each: len(votes[each]))
    ]
    alike = [script for script, keys in votes.items() if len(keys) == most and script != best[0]]
    others = f", which {alike[0]} has, too" if alike and schema.trainer is not SD_SCRIPTS else ""
    why = f"because of {', '.join(votes[best[0]][:3])}{others}; --script names another"
    one = not alike
    # Of sd-scripts, all the others know what SDXL's knows.
    return Script(schema.trainer, best[0], why, one or len(best) == 1 or best[0] == SDXL)
