"""What a trainer accepts: its options, network arguments and dataset keys, from a checkout or as shipped here."""

import dataclasses as dc
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from hina_kohya.check import source_networks, source_options
from hina_kohya.patch import targets
from hina_kohya.trainers import facts
from hina_kohya.trainers.checkouts import TRAINERS, Checkout
from hina_kohya.trainers.errors import UserError
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS
from hina_kohya.trainers.trainer import Trainer

TRAINER = "train_network.py"
LYCORIS = "lycoris.kohya"


@dc.dataclass(frozen=True)
class Option:
    """One option of a trainer. `type`: flag, int, float, str, or steps (a number, or a fraction of the run).

    releases: those that have it, where not all of the shipped ones have
    """

    name: str
    type: str
    list: bool = False
    choices: tuple[Any, ...] = ()
    default: Any = None
    flags: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()

    @property
    def unset(self) -> Any:
        return False if self.type == "flag" and self.default is None else self.default


@dc.dataclass(frozen=True)
class NetworkFacts:
    """`reads`: names of network_args; `taken`: names that the trainer gives itself; `algorithms`: of LyCORIS."""

    reads: tuple[str, ...]
    taken: tuple[str, ...]
    algorithms: tuple[str, ...] = ()


@dc.dataclass(frozen=True)
class Schema:
    """Facts of one family of trainers: of `checkout`, or those shipped where that is None."""

    trainer: Trainer = SD_SCRIPTS
    checkout: Checkout | None = None

    @property
    def origin(self) -> str:
        if self.checkout is not None:
            return f"{self.checkout.root} ({(self.checkout.commit or 'no git')[:8]})"
        releases = " and ".join(shipped(self.trainer)["releases"])
        return f"{self.trainer.name} {releases}, as shipped with hina-kohya; --sd-scripts PATH reads yours"

    @cached_property
    def scripts(self) -> list[str]:
        """The scripts that train adapters."""
        if self.checkout is None:
            return [script for script in shipped(self.trainer)["trainers"] if script != source_options.COMMON]
        return [path.name for path in self.checkout.scripts]

    def options(self, script: str) -> dict[str, Option]:
        if script not in self.scripts:
            raise UserError(f"there is no trainer {script}; known: {', '.join(self.scripts)}")
        return _options(self, script)

    def network(self, module: str) -> NetworkFacts | None:
        """None for a module that neither the trainer nor LyCORIS has."""
        if module == LYCORIS:
            target = targets.find_lycoris()
            table = source_networks.lycoris_of(target.root / "lycoris") if target else None
        elif self.checkout is None:
            table = shipped(self.trainer)["networks"].get(module)
        else:
            table = source_networks.network_facts(self.checkout, module)
        return NetworkFacts(**{key: tuple(each) for key, each in table.items()}) if table else None

    @property
    def networks(self) -> list[str]:
        """The names of the trainer's network modules, as shipped."""
        return list(shipped(self.trainer)["networks"])

    def unread(self, script: str) -> tuple[str, ...]:
        """Options that a script has and never reads, of the shipped releases."""
        return tuple(shipped(self.trainer).get("unread", {}).get(script, ()))

    @cached_property
    def datasets(self) -> dict[str, dict[str, str]]:
        """The tables of its dataset config; sd-scripts of early 2023 had none, and gets those that are shipped."""
        if self.checkout is None or not source_networks.has_dataset_tables(self.checkout):
            return shipped(self.trainer)["datasets"]
        return source_networks.dataset_tables(self.checkout)


@lru_cache(maxsize=64)
def _options(schema: Schema, script: str) -> dict[str, Option]:
    if schema.checkout is not None:
        table = source_options.options_of(schema.checkout, script)
    else:
        trainers = shipped(schema.trainer)["trainers"]
        table = trainers[source_options.COMMON] | trainers[script]
    return {name: Option(name, **{key: _frozen(each) for key, each in about.items()}) for name, about in table.items()}


@lru_cache(maxsize=len(TRAINERS))
def every_option(trainer: Trainer = SD_SCRIPTS) -> dict[str, Option]:
    """The options of all scripts of a family together, as shipped."""
    schema = Schema(trainer)
    return {name: option for script in schema.scripts for name, option in schema.options(script).items()}


def scripts_with(key: str, trainer: Trainer = SD_SCRIPTS) -> dict[str, dict[str, Any]]:
    """The scripts that have an option which not all of the family have, with what is known of it."""
    trainers = shipped(trainer)["trainers"]
    return {
        script: options[key]
        for script, options in trainers.items()
        if script != source_options.COMMON and key in options
    }


@lru_cache(maxsize=len(TRAINERS))
def shipped(trainer: Trainer) -> dict[str, Any]:
    return json.loads(shipped_file(trainer).read_text(encoding="utf-8"))


def shipped_file(trainer: Trainer) -> Path:
    return Path(facts.__file__).with_name(f"{trainer.name}.json")


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
