"""A run as its trainer will have it: the one model that check, forecast, launch and doctor read."""

import dataclasses as dc
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from hina_kohya.check import values
from hina_kohya.check.datasets import Dataset, datasets_of
from hina_kohya.check.hooks import Hooks, hooks_of
from hina_kohya.check.network import OPTION as NETWORK_ARGS
from hina_kohya.check.network import Network, inner_of, network_of
from hina_kohya.check.optimizer import Optimizer, optimizer_of
from hina_kohya.check.reading.source import Source
from hina_kohya.check.schema import Option, Schema, every_option
from hina_kohya.check.state import State, state_of
from hina_kohya.check.trainer import Script, script_of, trainer_of
from hina_kohya.trainers import checkouts
from hina_kohya.trainers.checkouts import TRAINERS, Checkout
from hina_kohya.trainers.facts import places


@dc.dataclass(frozen=True)
class How:
    """What the caller says of a run beside its source.

    checkout: the one that was given; otherwise that of the trainer which the source turns out to be for
    launched: it is started by hina_kohya.launch
    """

    checkout: Checkout | None = None
    script: str | None = None
    arch: str | None = None
    launched: bool = False


@dc.dataclass(frozen=True)
class Run:
    """
    source   : what the user gave, with the words of its command line read
    options  : those of the script, by name
    args     : every option with its value or default; a value of the wrong type as it was meant (a rule says so)
    datasets : run and dataset file merged, as the trainer merges them
    state    : the folder that it resumes from, None where it resumes from none
    """

    source: Source
    schema: Schema
    trainer: Script
    hooks: Hooks
    options: Mapping[str, Option]
    args: Mapping[str, Any]
    network: Network
    optimizer: Optimizer
    datasets: tuple[Dataset, ...]
    state: State | None
    arch: str | None = None

    def at(self, function: str) -> str:
        """Where the trainer does what sd-scripts does in this function: what a finding cites."""
        return places.at(function, self.schema.trainer)

    def on(self, name: str) -> bool:
        return bool(self.args.get(name))

    def words(self, name: str) -> list[str]:
        """The words of a list option, as given."""
        return [str(word) for word in _listed(self.source.values.get(name))]

    def given(self, name: str) -> Any:
        """The value that the user gave, None where it is the default."""
        return self.args[name] if name in self.source.values and name in self.options else None

    @cached_property
    def architecture(self) -> str | None:
        """The skeleton of its model; None where there is none, or the model is not known."""
        return self.arch or self.trainer.architecture(self.args)

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
        rates = {*self.text_encoder_lrs} if self.trains_text_encoder else set()
        return (rates | {self.unet_lr} if self.trains_unet else rates) - {None}

    @property
    def warms_up(self) -> bool:
        return bool(self.args["lr_warmup_steps"]) or "warmup" in str(self.args["lr_scheduler_type"]).lower()

    @property
    def dtype(self) -> str:
        """Of the adapter's parameters."""
        return "bfloat16" if self.on("full_bf16") else "float16" if self.on("full_fp16") else "float32"

    @property
    def launches(self) -> bool:
        """Whether hina_kohya.launch starts it."""
        return self.hooks.why.startswith("started with")


def run_of(source: Source, how: How) -> Run:
    """Raises UserError for a script or checkout that there is not."""
    reading = source.parsed(options_of_all())
    module = str(reading.values.get("network_module") or "")
    inner = inner_of(module, _listed(reading.values.get(NETWORK_ARGS)))
    script = how.script or reading.script or None
    trainer = how.checkout.trainer if how.checkout else trainer_of(reading.values, inner, reading.mentions, script)
    schema = Schema(trainer, how.checkout or checkouts.find(trainer))
    choice = script_of(reading, inner, schema, how.script, how.arch)
    options = schema.options(choice.script)
    reading = source.parsed(options)
    module = str(reading.values.get("network_module") or "")
    hooks = hooks_of(module, schema, choice.script, how.launched or reading.launched)
    args = _args(reading, options)
    reading = reading.with_tables(args["dataset_config"])
    return Run(
        reading, schema, choice, hooks, options, args,
        network_of(args["network_module"] or "", _listed(args["network_args"]), schema),
        _optimizer(reading, args, hooks.active, schema),
        datasets_of(reading.tables, args), state_of(args), how.arch,
    )  # fmt: skip


def _args(source: Source, options: Mapping[str, Option]) -> dict[str, Any]:
    # A rule may ask for what another trainer has, or an old checkout lacks.
    args = {name: option.unset for name, option in (options_of_all() | dict(options)).items()}
    for name, value in source.values.items():
        if option := options.get(name):
            fits = values.fits(option, value)
            if not fits and value != "" and not value and not option.unset:
                continue  # `resume = false` is as good as nothing
            setting = value if fits else values.meant(option, value)
            args[name] = args[name] if setting is None and value is not None else setting
    return args


def _optimizer(source: Source, args: Mapping[str, Any], hooked: bool, schema: Schema) -> Optimizer:
    kind = args["optimizer_type"]
    kind = "AdamW8bit" if args["use_8bit_adam"] else "Lion" if args["use_lion_optimizer"] else kind
    # As given: the forgiving parser takes a string, too.
    return optimizer_of(kind, source.values.get("optimizer_args"), hooked, schema.trainer)


def options_of_all() -> dict[str, Option]:
    """Of all trainers; of two options of one name, that of sd-scripts."""
    return {name: each for trainer in TRAINERS[::-1] for name, each in every_option(trainer).items()}


def _listed(words: Any) -> Sequence[Any]:
    return words if isinstance(words, list) else []
