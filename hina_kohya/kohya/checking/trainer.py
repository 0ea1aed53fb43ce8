"""Which of sd-scripts' trainers a configuration is for."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

from hina_kohya.kohya.checking.schema import TRAINER, Schema, other_trainers

SDXL = "sdxl_train_network.py"
SD3 = "sd3_train_network.py"
# endings of network modules -> trainer
_NETWORKS = {
    "_flux": "flux_train_network.py",
    "_sd3": SD3,
    "_lumina": "lumina_train_network.py",
    "_hunyuan_image": "hunyuan_image_train_network.py",
    "_anima": "anima_train_network.py",
}
# trainer -> architecture, where there is only one; SD3.5 comes in two sizes
_ARCHITECTURES = {
    SDXL: "sdxl",
    "flux_train_network.py": "flux1",
    "lumina_train_network.py": "lumina2",
    "hunyuan_image_train_network.py": "hunyuan-image",
    "anima_train_network.py": "anima",
}


@dc.dataclass(frozen=True)
class Trainer:
    """why: how it was told; certain: whether it was told at all, and is not just the plain one."""

    script: str
    why: str
    certain: bool

    def architecture(self, values: Mapping[str, Any]) -> str | None:
        if self.script == TRAINER and self.certain:
            return "sd2" if values.get("v2") is True else "sd15"
        return _ARCHITECTURES.get(self.script)


def trainer_of(
    values: Mapping[str, Any],
    network: str,
    named: Sequence[str],
    schema: Schema,
    script: str | None,
    arch: str | None,
) -> Trainer:
    """From the module that makes the network, or the scripts `named` in the file, or the keys. Raises UserError."""
    if script is not None:
        name = script.replace("\\", "/").rpartition("/")[2]
        name += ".py" * (not name.endswith(".py"))
        schema.options(name)
        return Trainer(name, "as told", True)
    if arch is not None:
        for name, known in _ARCHITECTURES.items():
            if known == arch:
                return Trainer(name, f"because of --arch {arch}", True)
        return Trainer(SD3 if arch.startswith("sd3") else TRAINER, f"because of --arch {arch}", True)
    for ending, name in _NETWORKS.items():
        if network.endswith(ending):
            return Trainer(name, f"because of {network}", True)
    if len(known := [each for each in named if each in schema.trainers]) == 1:
        return Trainer(known[0], "named in the file", True)
    return _by_keys(values)


def _by_keys(values: Mapping[str, Any]) -> Trainer:
    """The trainer that knows the most of the keys that not all of them know."""
    votes: dict[str, list[str]] = {}
    for key in values:
        for script in other_trainers(key):
            votes.setdefault(script, []).append(key)
    if not votes:
        return Trainer(TRAINER, "since nothing says otherwise; --script names another", False)
    most = max(map(len, votes.values()))
    best = [script for script in _ARCHITECTURES if len(votes.get(script, ())) == most] or [
        max(votes, key=lambda each: len(votes[each]))
    ]
    why = f"because of {', '.join(votes[best[0]][:3])}; --script names another"
    return Trainer(best[0], why, len(best) == 1 or best[0] == SDXL)  # what SDXL knows, all the others know, too
