"""Everything that a rule may look at."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from hina_kohya.kohya import patching
from hina_kohya.kohya.checking import values
from hina_kohya.kohya.checking.network import OPTION as NETWORK_ARGS
from hina_kohya.kohya.checking.network import WRAPPERS, Network, inner_of, network_of
from hina_kohya.kohya.checking.optimizer import Optimizer, optimizer_of
from hina_kohya.kohya.checking.reading import Reading
from hina_kohya.kohya.checking.schema import LYCORIS, Option, Schema, every_option
from hina_kohya.kohya.checking.trainer import Trainer, trainer_of


@dc.dataclass(frozen=True)
class Hooks:
    """Whether hina_kohya's hooks will be active in this run, and how we know."""

    active: bool
    why: str


@dc.dataclass(frozen=True)
class Context:
    """One configuration, read, with defaults, and with the two things that most rules are about."""

    reading: Reading
    schema: Schema
    trainer: Trainer
    hooks: Hooks

    @cached_property
    def options(self) -> dict[str, Option]:
        return self.schema.options(self.trainer.script)

    @cached_property
    def args(self) -> Mapping[str, Any]:
        """Every option with its value or default; a value of the wrong type as it was meant (a rule says so)."""
        known = every_option() | self.options  # an old checkout lacks options that rules ask for
        found = {name: option.unset for name, option in known.items()}
        for name, value in self.reading.values.items():
            if option := self.options.get(name):
                meant = value if values.fits(option, value) else values.meant(option, value)
                found[name] = found[name] if meant is None else meant
        return found

    def on(self, name: str) -> bool:
        return bool(self.args.get(name))

    def words(self, name: str) -> list[str]:
        """The words of a list option, as given."""
        return [str(word) for word in _listed(self.reading.values.get(name))]

    def given(self, name: str) -> Any:
        """The value that the user gave, None where it is the default."""
        return self.args[name] if name in self.reading.values and name in self.options else None

    @cached_property
    def network(self) -> Network:
        return network_of(self.args["network_module"] or "", _listed(self.args["network_args"]), self.schema)

    @cached_property
    def optimizer(self) -> Optimizer:
        kind = self.args["optimizer_type"]
        kind = "AdamW8bit" if self.on("use_8bit_adam") else "Lion" if self.on("use_lion_optimizer") else kind
        # As given: the forgiving parser takes a string, too.
        return optimizer_of(kind, self.reading.values.get("optimizer_args"), self.hooks.active)

    @property
    def trains_text_encoder(self) -> bool:
        return not self.on("network_train_unet_only")

    @property
    def trains_unet(self) -> bool:
        return not self.on("network_train_text_encoder_only")

    @property
    def text_encoder_lrs(self) -> list[float]:
        """One a text encoder, as far as given (LyCORIS: one for all); the general one where there is none."""
        lrs = self.args["text_encoder_lr"]
        lrs = lrs if isinstance(lrs, list) else [] if lrs is None else [lrs]
        return (lrs[:1] if self.network.is_lycoris else lrs) or [self.args["learning_rate"]]

    @property
    def unet_lr(self) -> float:
        return self.args["learning_rate"] if self.args["unet_lr"] is None else self.args["unet_lr"]

    @property
    def lrs(self) -> set[float]:
        """The learning rates of the param groups, before LoRA+."""
        found = {*self.text_encoder_lrs} if self.trains_text_encoder else set()
        return (found | {self.unet_lr} if self.trains_unet else found) - {None}

    @property
    def warms_up(self) -> bool:
        return bool(self.args["lr_warmup_steps"]) or "warmup" in str(self.args["lr_scheduler_type"]).lower()


def context_of(
    reading: Reading, schema: Schema, words: Sequence[str], script: str | None, arch: str | None, launched: bool
) -> Context:
    """`words` are further words of the command line; `launched`: started by hina_kohya.launch. Raises UserError."""
    given = reading.over(words, every_option()).values
    module = given.get("network_module")
    inner = inner_of(module if isinstance(module, str) else "", _listed(given.get(NETWORK_ARGS)))
    trainer = trainer_of(given, inner, reading.scripts, schema, script, arch)
    reading = reading.over(words, schema.options(trainer.script))
    module = str(reading.values.get("network_module") or "")
    return Context(reading, schema, trainer, _hooks(module, schema, launched))


def _hooks(module: str, schema: Schema, launched: bool) -> Hooks:
    if launched:
        return Hooks(True, "started with hina-kohya launch")
    if module in WRAPPERS:
        return Hooks(True, f"network_module = {module}")
    if module == LYCORIS and patching.inspect("lycoris").patched:
        return Hooks(True, "LyCORIS is patched")
    if schema.checkout is not None and patching.inspect("sd-scripts", schema.checkout).patched:
        return Hooks(True, "sd-scripts is patched")
    return Hooks(False, "network_module is not one of ours, nothing is patched; or pass --launched")


def _listed(words: Any) -> list[Any]:
    return words if isinstance(words, list) else []
