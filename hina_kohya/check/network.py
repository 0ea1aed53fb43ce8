"""The network that a configuration asks for: which module makes it, and what it is told."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any

from hina_kohya.adlrns.adapter import arguments
from hina_kohya.check.schema import LYCORIS, NetworkFacts, Schema

ADLRNS = "adlrns"
WRAPPERS = ("hina_kohya.lycoris", "hina_kohya.network", "hina_kohya.adlrns")
_OF_LYCORIS = ("hina_kohya.lycoris", "hina_kohya.adlrns")
OPTION = "network_args"


@dc.dataclass(frozen=True)
class Network:
    """module: as typed; inner: the one that makes the network; arguments: of network_args, the last of each name

    facts: None for a module that is not known; malformed: words without `=`; repeats: names given again.
    """

    module: str
    inner: str
    arguments: Mapping[str, str]
    facts: NetworkFacts | None
    malformed: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()

    @property
    def wrapped(self) -> bool:
        return self.module in WRAPPERS

    @property
    def is_lycoris(self) -> bool:
        return self.inner == LYCORIS

    @property
    def algorithm(self) -> str:
        """Of LyCORIS; otherwise the module's name stands for it."""
        if self.is_lycoris:
            default = ADLRNS if self.module == "hina_kohya.adlrns" else "lora"
            return (self.arguments.get("algo") or default).lower()
        return self.inner.rpartition(".")[2].partition("_")[0]

    @property
    def is_adlrns(self) -> bool:
        return self.is_lycoris and self.algorithm == ADLRNS

    def is_on(self, name: str) -> bool:
        """A switch as LyCORIS reads it: on unless it says false."""
        return name in self.arguments and self.arguments[name].lower() != "false"

    def is_off(self, name: str) -> bool:
        """An argument that asks for nothing, as GUIs write all that they know."""
        return self.arguments[name].lower() in ("false", "0", "0.0", "none", "")

    def ratio(self, part: str) -> float | None:
        """The LoRA+ ratio of "unet" or "text_encoder", where there is one that can be read."""
        text = self.arguments.get(f"loraplus_{part}_lr_ratio") or self.arguments.get("loraplus_lr_ratio")
        try:
            return float(text) if text else None
        except ValueError:
            return None


def inner_of(module: str, words: Sequence[Any]) -> str:
    """The module behind our wrappers."""
    if module == "hina_kohya.network":
        values = [str(word).partition("=")[2] for word in words if str(word).startswith("inner=")]
        return values[-1] if values else ""
    return LYCORIS if module in _OF_LYCORIS else module


def network_of(module: str, words: Sequence[Any], schema: Schema) -> Network:
    """Words are split at the first `=`, and the last of a name counts (NetworkTrainer.train)."""
    pairs = [word.split("=", 1) for word in words if isinstance(word, str) and "=" in word]
    names = [name for name, _ in pairs]
    inner = inner_of(module, words)
    arguments = {name: text for name, text in pairs if (module, name) != ("hina_kohya.network", "inner")}
    malformed = tuple(str(word) for word in words if not isinstance(word, str) or "=" not in word)
    repeats = tuple(dict.fromkeys(name for name in names if names.count(name) > 1))
    network = Network(module, inner, arguments, schema.network(inner) if inner else None, malformed, repeats)
    return _with_adlrns(network) if network.is_lycoris and network.facts else network


def _with_adlrns(network: Network) -> Network:
    """What our hooks add to LyCORIS."""
    assert network.facts is not None
    # A preset of one's own may name the algorithm, and network_args still hold what is one for all modules.
    reads = network.is_adlrns or network.arguments.get("preset", "").endswith(".toml")
    names = arguments.NAMES if reads else ()
    facts = network.facts
    facts = dc.replace(facts, reads=(*facts.reads, *names), algorithms=(*facts.algorithms, ADLRNS))
    return dc.replace(network, facts=facts)
