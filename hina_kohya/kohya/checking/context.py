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
from hina_kohya.kohya.checking.trainer import Script, script_of, trainer_of
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.call_sites import Outcome, Verdict
from hina_kohya.trainers.checkouts import TRAINERS, Checkout
from hina_kohya.trainers.facts import places
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS


@dc.dataclass(frozen=True)
class Hooks:
    """Whether hina_kohya's hooks will act in this run, and how we know.

    installed: something in this run installs them; why: what, or what is missing
    site     : whether the script calls what they wrap, as its source says
    """

    installed: bool
    why: str
    site: Verdict

    @property
    def active(self) -> bool:
        return self.installed and self.site.outcome is not Outcome.CANNOT


@dc.dataclass(frozen=True)
class Context:
    """One configuration, read, with defaults, and with the two things that most rules are about."""

    reading: Reading
    schema: Schema
    trainer: Script
    hooks: Hooks

    def at(self, function: str) -> str:
        """Where the trainer does what sd-scripts does in this function: what a finding cites."""
        return places.at(function, self.schema.trainer)

    @cached_property
    def options(self) -> dict[str, Option]:
        return self.schema.options(self.trainer.script)

    @cached_property
    def args(self) -> Mapping[str, Any]:
        """Every option with its value or default; a value of the wrong type as it was meant (a rule says so)."""
        # A rule may ask for what another trainer has, or an old checkout lacks.
        known = _options_of_all() | self.options
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
        words = self.reading.values.get("optimizer_args")
        return optimizer_of(kind, words, self.hooks.active, self.schema.trainer)

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
    reading: Reading,
    words: Sequence[str],
    checkout: Checkout | None,
    script: str | None,
    arch: str | None,
    launched: bool,
) -> Context:
    """`words` are further words of the command line; `launched`: started by hina_kohya.launch. Raises UserError.

    checkout: the one that was given; otherwise that of the trainer which the configuration turns out to be for.
    """
    given = reading.over(words, _options_of_all())
    module = given.values.get("network_module")
    inner = inner_of(module if isinstance(module, str) else "", _listed(given.values.get(NETWORK_ARGS)))
    trainer = checkout.trainer if checkout else trainer_of(given.values, inner, reading.scripts, script)
    schema = Schema(trainer, checkout or checkouts.find(trainer))
    told = script_of(given.values, inner, reading.scripts, schema, script, arch)
    reading = reading.over(words, schema.options(told.script))
    module = str(reading.values.get("network_module") or "")
    return Context(reading, schema, told, _hooks(module, schema, told, launched))


def _is_patched(checkout: Checkout | None) -> bool:
    if checkout is None or checkout.trainer is not SD_SCRIPTS:
        return False
    return patching.inspect("sd-scripts", checkout.root).patched


def _options_of_all() -> dict[str, Option]:
    """Of all trainers; of two options of one name, that of sd-scripts."""
    return {name: each for trainer in TRAINERS[::-1] for name, each in every_option(trainer).items()}


def _hooks(module: str, schema: Schema, script: Script, launched: bool) -> Hooks:
    if schema.checkout is None:
        missing = f"no checkout of {schema.trainer.name} is known; add --sd-scripts PATH, or set {schema.trainer.home}"
        site = Verdict(Outcome.NOT_LOOKED_AT, missing)
    else:
        site = schema.checkout.verdict(script.script)
    if launched:
        return Hooks(True, "started with hina-kohya launch", site)
    if module in WRAPPERS:
        return Hooks(True, f"network_module = {module}", site)
    if module == LYCORIS and patching.inspect("lycoris").patched:
        return Hooks(True, "LyCORIS is patched", site)
    checkout = schema.checkout
    if (
        checkout is not None
        and checkout.trainer is SD_SCRIPTS
        and patching.inspect("sd-scripts", checkout.root).patched
    ):
        return Hooks(True, "sd-scripts is patched", site)
    return Hooks(False, "network_module is not one of ours, nothing is patched; or pass --launched", site)


def _listed(words: Any) -> list[Any]:
    return words if isinstance(words, list) else []
