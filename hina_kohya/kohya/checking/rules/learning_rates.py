"""Learning rates that train nothing, are ignored, or that an optimizer cannot keep apart."""

from collections.abc import Iterator

from hina_kohya.kohya.checking.context import Context
from hina_kohya.kohya.checking.finding import Finding, error, warning
from hina_kohya.kohya.checking.reading import toml_line
from hina_kohya.kohya.checking.rules import rule_of
from hina_kohya.trainers.facts.places import at
from hina_kohya.trainers.sd_scripts import SD_SCRIPTS

# One learning rate for all groups, or RuntimeError at the first step.
_ONE_LR = ("prodigy", "dadaptation", "dadaptadampreprint", "dadaptadam", "dadaptlion", "dadaptsgd")
_FIRST_LR = ("dadaptadagrad", "dadaptadan", "dadaptadanip")


@rule_of(SD_SCRIPTS)
def nothing_is_trained(context: Context) -> Iterator[Finding]:
    if not context.trains_unet and not context.trains_text_encoder:
        yield error(
            "network_train_unet_only",
            "with network_train_text_encoder_only there is nothing left to train",
            "measured: optimizer got an empty parameter list",
            "network_train_text_encoder_only = false",
        )
    elif context.lrs and not any(context.lrs):
        key = "unet_lr" if context.given("unet_lr") == 0 else "learning_rate"
        yield error(
            key,
            "every learning rate is 0, so no group is left for the optimizer",
            "measured with lycoris.kohya and networks.lora: ValueError or IndexError",
            toml_line(key, 1e-4),
        )


@rule_of(SD_SCRIPTS)
def text_encoder_lr_ignored(context: Context) -> Iterator[Finding]:
    given = context.given("text_encoder_lr")
    if not context.trains_text_encoder and given and any(context.text_encoder_lrs):
        yield warning(
            "text_encoder_lr",
            "network_train_unet_only is on, so no text encoder is trained",
            at("NetworkTrainer.is_train_text_encoder"),
            "network_train_unet_only = false",
        )


@rule_of(SD_SCRIPTS)
def second_lr_ignored(context: Context) -> Iterator[Finding]:
    lrs = context.given("text_encoder_lr")
    if context.network.is_lycoris and isinstance(lrs, list) and len(set(lrs)) > 1 and context.trains_text_encoder:
        yield warning(
            "text_encoder_lr",
            f"LyCORIS takes one learning rate for all text encoders: {lrs[0]:g}",
            f"read ({at('NetworkTrainer.train')}), and run",
            toml_line("text_encoder_lr", lrs[:1]),
        )


@rule_of(SD_SCRIPTS)
def unet_lr_ignored(context: Context) -> Iterator[Finding]:
    if not context.trains_unet and context.given("unet_lr"):
        yield warning(
            "unet_lr",
            "network_train_text_encoder_only is on, so the U-Net is not trained",
            at("NetworkTrainer.train"),
            "network_train_text_encoder_only = false",
        )


@rule_of(SD_SCRIPTS)
def one_lr_only(context: Context) -> Iterator[Finding]:
    """Optimizers that estimate their step size for all groups together."""
    name = context.optimizer.lower
    if name not in (*_ONE_LR, *_FIRST_LR):
        return
    lrs = {lr for lr in context.lrs if lr}
    parts = [
        part
        for part, trained in (("text_encoder", context.trains_text_encoder), ("unet", context.trains_unet))
        if trained
    ]
    ratios = [part for part in parts if context.network.ratio(part) not in (None, 1.0)]
    if len(lrs) < 2 and not ratios:
        return
    key = "network_args" if ratios else "text_encoder_lr"
    why = "LoRA+ makes groups with another learning rate" if ratios else f"the learning rates differ ({_listed(lrs)})"
    fix = "# network_args: without loraplus_lr_ratio" if ratios else toml_line(key, [context.unet_lr])
    if name in _ONE_LR:
        yield error(
            key,
            f"{why}, and {context.optimizer.type} stops at the first step",
            "measured: RuntimeError; sd-scripts #1929",
            fix,
        )
    else:
        yield warning(
            key,
            f"{why}, and {context.optimizer.type} uses only the first",
            f"said by sd-scripts ({at('get_optimizer')})",
            fix,
        )


@rule_of(SD_SCRIPTS)
def lr_near_one(context: Context) -> Iterator[Finding]:
    name = context.optimizer.lower
    lrs = [lr for lr in context.lrs if lr]
    if (name == "prodigy" or name.startswith("dadapt")) and lrs and max(lrs) <= 0.1:
        key = next((each for each in ("unet_lr", "text_encoder_lr") if context.given(each)), "learning_rate")
        yield warning(
            key,
            f"{context.optimizer.type} finds its own step size, and multiplies it by {max(lrs):g}",
            f"sd-scripts advises 1.0 ({at('get_optimizer')})",
            toml_line(key, 1.0),
        )


@rule_of(SD_SCRIPTS)
def adafactor_ignores_lr(context: Context) -> Iterator[Finding]:
    optimizer = context.optimizer
    given = [key for key in ("unet_lr", "text_encoder_lr") if context.given(key)]
    if optimizer.lower == "adafactor" and optimizer.arguments.get("relative_step", True) is not False and given:
        yield warning(
            given[0],
            "Adafactor with relative_step=True (the default) ignores it",
            f"said by sd-scripts ({at('get_optimizer')})",
            'optimizer_args = ["relative_step=False", "scale_parameter=False"]',
        )


def _listed(lrs: set[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in sorted(lrs))
