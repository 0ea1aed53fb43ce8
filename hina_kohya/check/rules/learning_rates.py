"""Learning rates that train nothing, are ignored, or that an optimizer cannot keep apart."""

from collections.abc import Iterator

from hina_kohya.check.edit import Edit, argument, drop, put
from hina_kohya.check.finding import Finding, error, warning
from hina_kohya.check.rules import rule_of
from hina_kohya.check.run import Run
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.network_args import RATIOS
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# One learning rate for all groups, or RuntimeError at the first step.
_ONE_LR = ("prodigy", "dadaptation", "dadaptadampreprint", "dadaptadam", "dadaptlion", "dadaptsgd")
TOO_LARGE_BY_ITSELF = 0.3  # no workload trains with it, and nobody who knows the rate types it
_FIRST_LR = ("dadaptadagrad", "dadaptadan", "dadaptadanip")


@rule_of(SD_SCRIPTS)
def nothing_is_trained(run: Run) -> Iterator[Finding]:
    if not run.trains_unet and not run.trains_text_encoder:
        yield error(
            "network_train_unet_only",
            "with network_train_text_encoder_only there is nothing left to train",
            "measured: optimizer got an empty parameter list",
            put(network_train_text_encoder_only=False),
        )
    elif run.lrs and not any(run.lrs):
        key = "unet_lr" if run.given("unet_lr") == 0 else "learning_rate"
        yield error(
            key,
            "every learning rate is 0, so no group is left for the optimizer",
            "measured with lycoris.kohya and networks.lora: ValueError or IndexError",
            put(**{key: 1e-4}),
        )


@rule_of(SD_SCRIPTS)
def lr_left_out(run: Run) -> Iterator[Finding]:
    """The default of the option is far below anything that trains an adapter."""
    parts = (run.trains_unet and run.given("unet_lr")) or (run.trains_text_encoder and run.given("text_encoder_lr"))
    if run.given("learning_rate") is None and not parts and not run.optimizer.sets_lr and run.network.module:
        rate = run.args["learning_rate"]
        what = f"nothing says which, and the default is {rate}: hardly anything is trained"
        rate = 1.0 if run.optimizer.finds_lr else 1e-4
        yield warning("learning_rate", what, "the option's default", put(learning_rate=rate))


@rule_of(SD_SCRIPTS)
def text_encoder_lr_ignored(run: Run) -> Iterator[Finding]:
    lrs = run.given("text_encoder_lr")
    if not run.trains_text_encoder and lrs and any(run.text_encoder_lrs):
        yield warning(
            "text_encoder_lr",
            "network_train_unet_only is on, so no text encoder is trained",
            at("NetworkTrainer.is_train_text_encoder"),
            drop("text_encoder_lr"),
        )


@rule_of(SD_SCRIPTS)
def second_lr_ignored(run: Run) -> Iterator[Finding]:
    lrs = run.given("text_encoder_lr")
    if run.network.is_lycoris and isinstance(lrs, list) and len(set(lrs)) > 1 and run.trains_text_encoder:
        yield warning(
            "text_encoder_lr",
            f"LyCORIS takes one learning rate for all text encoders: {lrs[0]:g}",
            f"read ({at('NetworkTrainer.train')}), and run",
            put(text_encoder_lr=lrs[:1]),
        )


@rule_of(SD_SCRIPTS)
def unet_lr_ignored(run: Run) -> Iterator[Finding]:
    if not run.trains_unet and run.given("unet_lr"):
        yield warning(
            "unet_lr",
            "network_train_text_encoder_only is on, so the U-Net is not trained",
            at("NetworkTrainer.train"),
            drop("unet_lr"),
        )


@rule_of(SD_SCRIPTS)
def one_lr_only(run: Run) -> Iterator[Finding]:
    """Optimizers that estimate their step size for all groups together."""
    name = run.optimizer.lower
    if name not in (*_ONE_LR, *_FIRST_LR):
        return
    lrs = {lr for lr in run.lrs if lr}
    parts = [part for part, trains in (("text_encoder", run.trains_text_encoder), ("unet", run.trains_unet)) if trains]
    ratios = [part for part in parts if run.network.ratio(part) not in (None, 1.0)]
    if len(lrs) < 2 and not ratios:
        return
    key = "network_args" if ratios else "text_encoder_lr"
    why = "LoRA+ makes groups with another learning rate" if ratios else f"the learning rates differ ({_listed(lrs)})"
    edit = put(**{key: [run.unet_lr]})
    if ratios:
        edit = Edit()
        for name_of_ratio in RATIOS:
            edit += argument(key, run.words(key), name_of_ratio)
    if name in _ONE_LR:
        yield error(
            key,
            f"{why}, and {run.optimizer.type} stops at the first step",
            "measured: RuntimeError; sd-scripts #1929",
            edit,
        )
    else:
        yield warning(
            key,
            f"{why}, and {run.optimizer.type} uses only the first",
            f"said by sd-scripts ({at('get_optimizer')})",
            edit,
        )


@rule_of(SD_SCRIPTS)
def lr_near_one(run: Run) -> Iterator[Finding]:
    lrs = [lr for lr in run.lrs if lr]
    if run.optimizer.finds_lr and lrs and max(lrs) <= 0.1:
        key = next((each for each in ("unet_lr", "text_encoder_lr") if run.given(each)), "learning_rate")
        yield warning(
            key,
            f"{run.optimizer.type} finds its own step size, and multiplies it by {max(lrs):g}",
            f"sd-scripts advises 1.0 ({at('get_optimizer')})",
            put(**{key: [1.0] if key == "text_encoder_lr" else 1.0}),
        )


@rule_of(SD_SCRIPTS)
def lr_of_prodigy(run: Run) -> Iterator[Finding]:
    """A learning rate for an optimizer that finds its own, given to one of ours that does not."""
    lrs = [lr for lr in run.lrs if lr]
    if run.optimizer.is_hina and not run.optimizer.finds_lr and lrs and max(lrs) >= TOO_LARGE_BY_ITSELF:
        key = next((each for each in ("unet_lr", "text_encoder_lr") if run.given(each)), "learning_rate")
        yield warning(
            key,
            f"{run.optimizer.last} takes steps of {max(lrs):g}, far larger than those that train a LoRA; "
            "only HinaAuto and use_auto_lr=True find the rate themselves",
            "best rates of LoRA on a pretrained model: 5e-3 (docs/learning_rates.md)",
            argument("optimizer_args", run.optimizer.words, "use_auto_lr", "True"),
        )


@rule_of(SD_SCRIPTS)
def adafactor_ignores_lr(run: Run) -> Iterator[Finding]:
    optimizer = run.optimizer
    keys = [key for key in ("unet_lr", "text_encoder_lr") if run.given(key)]
    if optimizer.lower == "adafactor" and optimizer.sets_lr and keys:
        yield warning(
            keys[0],
            "Adafactor with relative_step=True (the default) ignores it",
            f"said by sd-scripts ({at('get_optimizer')})",
            argument("optimizer_args", optimizer.words, "relative_step", "False")
            + argument("optimizer_args", optimizer.words, "scale_parameter", "False"),
        )


def _listed(lrs: set[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in sorted(lrs))
