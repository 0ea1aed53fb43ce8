"""What sd-scripts accepts: its options, network arguments and dataset keys, from a checkout or as shipped here."""

import argparse
import dataclasses as dc
import json
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NoReturn

from hina_kohya.kohya import targets
from hina_kohya.kohya.checking import source_networks, source_options
from hina_kohya.trainers.errors import UserError

SHIPPED = Path(__file__).with_name("sd_scripts.json")
TRAINER = source_options.TRAINER
LYCORIS = "lycoris.kohya"


@dc.dataclass(frozen=True)
class Option:
    """One option of a trainer. `type`: flag, int, float, str, or steps (a number, or a fraction of the run)."""

    name: str
    type: str
    list: bool = False
    choices: tuple[Any, ...] = ()
    default: Any = None
    flags: tuple[str, ...] = ()

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
    """Facts of one sd-scripts: of `checkout`, or those shipped where that is None."""

    checkout: Path | None = None

    @property
    def origin(self) -> str:
        if self.checkout is not None:
            return f"{self.checkout} ({(targets.commit(self.checkout) or 'no git')[:8]})"
        return f"sd-scripts {_shipped()['commits'][0][:8]}, as shipped with hina-kohya; --sd-scripts PATH reads yours"

    @cached_property
    def trainers(self) -> list[str]:
        if self.checkout is None:
            return list(_shipped()["trainers"])
        return sorted(path.name for path in self.checkout.glob(f"*{TRAINER}"))

    def options(self, script: str) -> dict[str, Option]:
        if script not in self.trainers:
            raise UserError(f"there is no trainer {script}; known: {', '.join(self.trainers)}")
        if self.checkout is not None:
            found = source_options.options_of(self.checkout, script)
        else:
            found = _shipped()["trainers"][TRAINER] | _shipped()["trainers"][script]
        return {
            name: Option(name, **{key: _frozen(each) for key, each in facts.items()}) for name, facts in found.items()
        }

    def network(self, module: str) -> NetworkFacts | None:
        """None for a module that neither sd-scripts nor LyCORIS has."""
        found: dict[str, Any] | None = None
        if module == LYCORIS:
            target = targets.find_lycoris()
            found = source_networks.lycoris_of(target.root / "lycoris") if target else None
        elif self.checkout is None:
            found = _shipped()["networks"].get(module)
        elif (path := self.checkout / (module.replace(".", "/") + ".py")).is_file():
            found = source_networks.network_of(path)
        return NetworkFacts(**{key: tuple(each) for key, each in found.items()}) if found else None

    @property
    def networks(self) -> list[str]:
        """The names of sd-scripts' network modules, as shipped."""
        return list(_shipped()["networks"])

    @cached_property
    def datasets(self) -> dict[str, dict[str, str]]:
        """The tables of library/config_util.py; sd-scripts of early 2023 has no such file."""
        if self.checkout is None or not (self.checkout / "library" / "config_util.py").is_file():
            return _shipped()["datasets"]
        return source_networks.dataset_tables(self.checkout)


@lru_cache(maxsize=1)
def every_option() -> dict[str, Option]:
    """The options of all trainers together, as shipped."""
    shipped = Schema()
    return {name: option for script in shipped.trainers for name, option in shipped.options(script).items()}


def other_trainers(key: str) -> list[str]:
    """The trainers besides train_network.py that have an option."""
    return [script for script, options in _shipped()["trainers"].items() if script != TRAINER and key in options]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser(options: dict[str, Option]) -> argparse.ArgumentParser:
    """A parser of the same command line; only what is given is set. Raises UserError instead of leaving."""
    made = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    for option in options.values():
        how: dict[str, Any] = {"dest": option.name}
        if option.type == "flag":
            how["action"] = "store_false" if option.default else "store_true"
        else:
            how |= {"type": _CONVERTERS[option.type], "choices": option.choices or None}
            how |= {"nargs": "*"} if option.list else {}
        made.add_argument(*(option.flags or [f"--{option.name}"]), **how)
    return made


def steps(text: str) -> int | float:
    """`--lr_warmup_steps` on the command line: `10%` and `0.1` are fractions of the run, the rest are steps."""
    if text.endswith("%"):
        return float(text[:-1]) / 100
    return int(text) if float(text) >= 1 else float(text)


_CONVERTERS = {"int": int, "float": float, "str": str, "steps": steps}


@lru_cache(maxsize=1)
def _shipped() -> dict[str, Any]:
    return json.loads(SHIPPED.read_text(encoding="utf-8"))


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
